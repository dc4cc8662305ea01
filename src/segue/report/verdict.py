"""What a run shows, in one sentence with its evidence; honest when that is little.

A gain counts only when the interval of the paired bootstrap leaves out zero, and, with several seeds, when every seed
gained. The share of the gap is named only where there is a gap worth the name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from segue.errors import UserError
from segue.report.read import Run, Stage
from segue.scoring.bootstrap import Interval, interval, paired_interval, read_per_image
from segue.scoring.names import per_image_file

MIN_GAP = 0.01  # less than one point is no gap to close, and no effect where nothing says how far chance reaches
FEW_IMAGES = 20
SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
Tone = Literal["good", "bad", "unclear", "none"]


@dataclass(frozen=True)
class Verdict:
    """``headline`` is the sentence, ``evidence`` what it rests on, ``caveats`` what would weaken it."""

    headline: str
    evidence: str
    tone: Tone
    caveats: tuple[str, ...] = ()
    gain: Interval | None = None


def points(value: float, sign: bool = False) -> str:
    """A fraction as points with one decimal and a true minus sign: ``+14.2``; a dash for NaN."""
    if math.isnan(value):
        return "–"
    text = f"{abs(100 * value):.1f}"
    minus = MINUS if value < 0 and text != "0.0" else ""
    return (minus or ("+" if sign else "")) + text


def percent(value: float) -> str:
    """A fraction as whole percent: ``61 %``."""
    return f"{MINUS if round(100 * value) < 0 else ''}{abs(round(100 * value))}{SPACE}%"


def median_seed(run: Run) -> str | None:
    """The seed that the page shows: named by result.json, else the (lower) median of the main stage's score."""
    named = str(run.result.get("median_seed"))
    if named in run.seeds:
        return named
    scores = {name: seed.score(seed.main) for name, seed in run.seeds.items() if seed.main}
    scores = {name: score for name, score in scores.items() if not math.isnan(score)}
    if not scores:
        return next(iter(run.seeds), None)
    middle = median_low(scores.values())
    return next(name for name, score in scores.items() if score == middle)


def judge(run: Run, whole: Run | None = None) -> Verdict:
    """The verdict on a run; ``whole`` holds all seeds when ``run`` is the median one of them."""
    roles = run.roles
    whole = whole or run
    state = unfinished(whole)
    source, adapted = (roles.get(r) for r in ("source_only", "adapted"))
    if source and adapted and not math.isnan(run.score(source) + run.score(adapted)):
        verdict = _adaptation(run, source, adapted, roles.get("target_supervised"), whole.seeds)
    elif run.main and not math.isnan(run.score(run.main)):
        verdict = _single(run, run.main)
    else:
        verdict = _no_score(run)
    if not state:
        return verdict
    return Verdict(f"{state} {verdict.headline}", verdict.evidence, verdict.tone, verdict.caveats, verdict.gain)


def unfinished(run: Run) -> str:
    """``Failed:`` or ``Not finished:`` when that is so, else nothing."""
    states = [str(run.info.get("status") or ""), *(str(s.info.get("status") or "") for s in run.stages)]
    if "failed" in states:
        return "Failed:"
    return "" if states[0] == "finished" or run.info.get("finished") else "Not finished:"


def gain_of(data: str | None, a: Stage, b: Stage) -> Interval | None:
    """Paired bootstrap of mIoU(b) - mIoU(a) on a data set; None when the per-image scores are not there."""
    try:
        first, second = (read_per_image(s.folder / per_image_file(data or "")) for s in (a, b))
        return paired_interval(first, second)
    except (UserError, ValueError):
        return None


def _adaptation(run: Run, source: Stage, adapted: Stage, supervised: Stage | None, seeds: dict[str, Run]) -> Verdict:
    before, after = run.score(source), run.score(adapted)
    gain = gain_of(run.target, source, adapted)
    gains = _seed_gains(seeds)
    change = after - before
    tone = _tone(change, gain, gains)
    gap = run.score(supervised) - before if supervised else math.nan
    headline = {
        "good": _closes(change, gap),
        "bad": f"Adaptation hurts: {points(change, sign=True)} points mIoU.",
        "unclear": f"No clear effect of adaptation: {points(change, sign=True)} points mIoU.",
        "none": "",
    }[tone]
    evidence = f"{points(change, sign=True)} points mIoU on {run.target} ({_interval_text(gain)}). "
    evidence += _seed_text(gains) + _chosen([source, adapted, *([supervised] if supervised else [])])
    return Verdict(headline, evidence, tone, tuple(_caveats(run, adapted, gain, gains, gap)), gain)


def _closes(change: float, gap: float) -> str:
    if math.isnan(gap):
        return f"Adaptation helps: {points(change, sign=True)} points mIoU."
    if gap < MIN_GAP:
        return f"Adaptation helps: {points(change, sign=True)} points mIoU, and there was no gap to close."
    share = change / gap
    if share >= 1:
        return f"Adaptation closes the whole gap ({percent(share)})."
    return f"Adaptation closes {percent(share)} of the gap."


def _tone(change: float, gain: Interval | None, gains: dict[str, float]) -> Tone:
    signs = {g > 0 for g in gains.values()}
    if len(signs) > 1 or change == 0:
        return "unclear"
    if gain is not None and not (gain.low > 0 or gain.high < 0):
        return "unclear"
    if gain is None and len(gains) < 2 and abs(change) < MIN_GAP:
        return "unclear"
    return "good" if change > 0 else "bad"


def _interval_text(gain: Interval | None) -> str:
    if gain is None or math.isnan(gain.low):
        return "no interval: the per-image scores are not stored"
    low, high = points(gain.low), points(gain.high)
    return f"{percent(gain.level)} interval {low} to {high}, paired bootstrap over {gain.num_images} images"


def _seed_gains(seeds: dict[str, Run]) -> dict[str, float]:
    gains = {}
    for name, run in seeds.items():
        roles = run.roles
        if "source_only" in roles and "adapted" in roles:
            gains[name] = run.score(roles["adapted"]) - run.score(roles["source_only"])
    return {name: gain for name, gain in gains.items() if not math.isnan(gain)}


def _seed_text(gains: dict[str, float]) -> str:
    if len(gains) < 2:
        return ""
    low, high = points(min(gains.values()), sign=True), points(max(gains.values()), sign=True)
    return f"This is the median of {len(gains)} seeds, which range from {low} to {high}. "


def _chosen(stages: list[Stage]) -> str:
    rules = {str(s.info.get("checkpoint") or "last") for s in stages}
    if rules == {"last"}:
        return "Scores are of the last checkpoint; no target label was used to choose it."
    if rules <= {"last", "label_free"}:
        return "Checkpoints were chosen without target labels."
    return f"Checkpoints were chosen with target labels ({', '.join(sorted(rules))}): the scores are optimistic."


def _caveats(run: Run, adapted: Stage, gain: Interval | None, gains: dict[str, float], gap: float) -> list[str]:
    out = []
    if len({g > 0 for g in gains.values()}) > 1:
        out.append("Seeds disagree: some gain and some lose.")
    elif gain is not None and gain.low <= 0 <= gain.high:
        out.append("The interval includes zero: other images could have told the opposite.")
    images = run.target and adapted.evaluations[run.target].num_images
    if images and images < FEW_IMAGES:
        out.append(f"Weak evidence: only {images} images.")
    if len(gains) < 2:
        out.append("One training seed: the interval covers the choice of images, not the luck of training.")
    if gap < MIN_GAP:
        out.append(f"The target-supervised model is only {points(gap, sign=True)} points from source-only.")
    return out


def _single(run: Run, stage: Stage) -> Verdict:
    evaluation = stage.evaluations[run.target or ""]
    try:
        spread = interval(read_per_image(stage.folder / per_image_file(run.target or "")))
        text = f"{percent(spread.level)} interval {points(spread.low)} to {points(spread.high)}, bootstrap over images"
    except UserError:
        text = "no interval: the per-image scores are not stored"
    few = evaluation.num_images < FEW_IMAGES
    return Verdict(
        f"{stage.name} reaches {points(evaluation.miou)} mIoU on {run.target}.",
        f"{evaluation.num_images} images; {text}. {_chosen([stage])}",
        "none",
        (f"Weak evidence: only {evaluation.num_images} images.",) if few else (),
    )


def _no_score(run: Run) -> Verdict:
    if not run.stages:
        return Verdict("Nothing has been trained yet.", "The run folder holds no stage.", "none")
    if any(s.evaluations for s in run.stages):
        return Verdict("No score could be computed.", "No labelled pixel of any class was found.", "none")
    return Verdict(
        "No scores: nothing was evaluated.",
        "Either no labelled validation set was given (evaluate.data) or no stage has come that far; "
        "what can be said without labels is below.",
        "none",
    )
