"""The report of an import as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from segue.labelling.answers import Report

SHOWN = 5


def lines(report: Report, run: str) -> Iterator[str]:
    """What was taken, what was not and why, what is missing, what to do next."""
    yield from _withdrawn(report)
    yield from _taken(report)
    yield from report.notes
    yield from _some(report.merged.surprising, "answers have nothing of what the model predicted there; look again:")
    yield from _standing(report)
    yield from _next(report, run)


def _withdrawn(report: Report) -> Iterator[str]:
    for number, count in sorted(report.withdrawn.items()):
        yield f"round {number}: {count} marked regions lost their answer and are open again"
    if report.not_answered:
        yield f"{report.not_answered} marked regions had no answer"


def _taken(report: Report) -> Iterator[str]:
    merged = report.merged
    if not report.withdrawn:
        images = len({change.image for change in merged.changes})
        yield f"{report.labels} labels read: {images} images with new answers, {merged.known} with none that is new"
    for number, pixels in sorted(merged.new_px.items()):
        late = "" if number == report.round.info.round else " (late answers)"
        yield f"round {number}: {pixels} pixels{late}"
    if merged.outside_px:
        yield f"{merged.outside_px} pixels outside of the asked regions were dropped"
    if merged.conflict_px:
        yield f"{merged.conflict_px} pixels differed between two answers, decided as --on-conflict says"
    if merged.untouched:
        yield from _some(
            merged.untouched,
            "images came back exactly as proposed, so nobody seems to have looked, and were not taken "
            "(--accept-untouched takes them):",
        )


def _standing(report: Report) -> Iterator[str]:
    info, classes = report.round.info, report.round.labels.classes
    asked = Counter(row.predicted for row in report.round.rows)
    missing = Counter(row.predicted for row in report.missing)
    done = info.regions - len(report.missing)
    yield f"round {info.round} of {info.group}: {done} of {info.regions} regions answered; by predicted class:"
    width = max(len(classes[key]) for key in asked)
    for key, count in sorted(asked.items()):
        yield f"  {classes[key]:{width}} {count - missing[key]:>6} of {count}"


def _next(report: Report, run: str) -> Iterator[str]:
    info = report.round.info
    if report.missing:
        per_image = Counter(row.image for row in report.missing)
        listed = [f"{image}: {n} regions" for image, n in per_image.items()]
        yield from _some(listed, "images have regions without a whole answer:")
    if report.complete:
        closed = ", the round is closed" if report.missing else ""
        yield f"next: go on with `segue run {run}/config.yaml --out {run} --resume`{closed}"
    else:
        yield (
            f"next: label the rest and import again (`segue annotate export {run} --group {info.group} --round "
            f"{info.round} --out NEW_FOLDER` asks for the rest alone), or go on without it: --close"
        )


def _some(rows: list[str], what: str) -> Iterator[str]:
    if rows:
        yield f"{len(rows)} {what}"
        yield from (f"  {row}" for row in rows[:SHOWN])
        if len(rows) > SHOWN:
            yield f"  and {len(rows) - SHOWN} more"
