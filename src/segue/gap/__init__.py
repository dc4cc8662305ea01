"""How far apart two sets of images are for a network: fingerprints of its activations and their distances.

Visual DNA (Ramtoula et al., CVPR 2023): for each neuron the distribution of its activations over all positions of all
images. ``layers`` asks any network through hooks, ``ranges`` says once how activations map to bins, ``fingerprint``
counts, ``distances`` compares, ``files`` keeps, ``vdna_files`` reads and writes the files of the published library.
From names to numbers: ``networks`` and ``reading`` open, ``between`` and ``classes`` (by predicted class) compare with
a floor, ``rank`` orders images, ``watch`` is an alarm, ``plan`` says the cost and ``show`` the result.
"""
