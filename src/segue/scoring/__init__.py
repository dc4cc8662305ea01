"""Scores of models and of label maps on labelled data.

``matrix`` (confusion, IoU), ``boundary``, ``bootstrap`` (intervals), ``result`` (what a scoring finds), ``protocols``
(named rules) and ``predictions`` (PNGs) import no torch; ``inference`` (how a model is asked), ``calibration`` and
``score`` (models on a data set) do. Nothing is imported here.
"""
