"""Scores: ``matrix`` (confusion, IoU), ``score`` (a model on a data set), ``bootstrap`` (intervals), ``samples``.

Nothing is imported here: ``matrix`` and ``bootstrap`` need no torch and the report uses them; ``score`` does.
"""
