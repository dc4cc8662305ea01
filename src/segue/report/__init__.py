"""``report.html`` of a run folder: one self-contained file, at most 5 MB, that needs no network and no scripts.

``write(folder)`` works for a run of any shape and at any moment: unfinished, failed, without labels, one stage, many
classes, several seeds. What is missing is left out. Nothing here imports torch.

What is read, all shares and scores as fractions 0..1 (NaN is null):

``run.json``
    ``name``, ``recipe``, ``created``, ``finished`` (null while running), ``status`` (running | finished | failed),
    ``seed``, ``command``, ``versions`` {}, ``machine`` {}, ``cpu_s``, ``labels`` (``LabelSpace.to_dict()``), ``roles``
    {source_only | adapted | target_supervised: stage name}. Optional: ``target`` (``DATASET:split`` of the three
    numbers; default the first evaluation), ``notes`` [text], ``licences`` {what: text}.
``result.json`` (optional)
    ``data`` (as ``target``) and ``median_seed``.
``config.yaml``
    Shown as it is.
``stages/<k>_<name>/stage.json``
    ``name``, ``method`` (name, or settings with ``name``), ``iterations``, ``start``, ``status``, ``checkpoint``
    (last | label_free | anything else: chosen with target labels), ``cpu_s``, ``parameters``, ``prior`` {class: share
    of the source labels}, ``evaluations`` {``DATASET:split``: what ``evaluate.score.save`` returned}, and where there
    are any ``references`` {name: stage or file}, ``pseudo_labels`` {stream: {``DATASET:split``: {``share_kept``}}}.
``stages/<k>_<name>/metrics.jsonl``
    One object a line with ``iteration`` and any of ``loss/<term>``, ``miou/<DATASET:split>``, ``log/share_kept``,
    ``log/pseudo_histogram`` (a share for each class), ``watch/<stream>/<number>`` (``segue.alarms.Look``), ``alarm``
    {``text``}. Broken lines are skipped.
``stages/<k>_<name>/per_image_<DATASET>_<split>.npz``
    Counts of every image for the bootstrap, see ``segue.scoring.bootstrap``.
``samples/<DATASET>_<split>/`` and ``stages/<k>_<name>/images/<DATASET>_<split>/<id>.png``
    Thumbnails that ``evaluate.score.save_samples`` wrote: ``<id>_image.jpg``, ``<id>_label.png`` and
    ``evenly_spaced.json``; predictions are palette PNGs of train ids. File names are percent-encoded ids
    (``segue.files.file_of``).
``seed_<s>/``
    With several seeds: one folder a seed, each with all of the above; the page shows the median seed.
"""

from __future__ import annotations

from pathlib import Path

from segue.files import write_text

FILE = "report.html"


def write(run_folder: Path | str) -> Path:
    """Write ``report.html`` into a run folder and return its path; ``UserError`` when there is no readable run.json."""
    from segue.report.page import render  # jinja2 and Pillow: only when a report is written
    from segue.report.read import read_run

    folder = Path(run_folder)
    path = folder / FILE
    write_text(path, render(read_run(folder)))
    return path
