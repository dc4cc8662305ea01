"""``segue compare``: several runs side by side, from their folders alone.

A row is one stage of one run, with all seeds of that run; scores are on one validation set. What decides whether two
numbers may stand side by side (scoring protocol, view, choice of the checkpoint, number of images, classes) is kept
with each row, and what differs is said. Nothing here imports torch.
"""
