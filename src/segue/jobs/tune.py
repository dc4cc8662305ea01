"""``segue tune``: search settings of a recipe with Optuna (Akiba et al., KDD 2019), sampler TPE.

A trial is one whole run of the recipe with other values of some keys; its score is the mIoU of the last checkpoint of
the adapted stage (without such a role, of the last stage) on the recipe's first evaluation set. The study lies in
``study.db`` in the output folder, so a stopped search goes on, in the trial that was stopped. The sampler of trial n is
seeded by (seed, n), so that a search in several sittings draws what one in a single sitting would.

A space is ``key=low:high`` (whole numbers when both are), ``key=low:high:log`` or ``key=a|b|c``, inline or as lines
``key: low:high:log`` of a YAML file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from segue import recipes, runs
from segue.config import Recipe, StageConfig
from segue.errors import Interrupted, UserError
from segue.files import write_text
from segue.hardware import launch
from segue.jobs.build import method_class
from segue.jobs.checks import prepare
from segue.jobs.run import run
from segue.ops.keys import seed_of

if TYPE_CHECKING:
    import optuna

WORST = 0.0
"""mIoU of a trial that crashed."""
ATTEMPTS = 3
"""A trial whose process dies this often scores worst too: it would end every search."""
ORACLE = "oracle (target labels used for selection)"
VALIDATION = "validation labels of the data it was trained on"


@dataclass(frozen=True)
class Range:
    """What one key may be: numbers from ``low`` to ``high``, or one of ``choices``."""

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value that the sampler wants tried."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Best:
    """What a search found: settings, their mIoU (fraction), how it was chosen, and the recipe that was written."""

    settings: dict[str, Any]
    miou: float
    trial: int
    data: str
    chosen: str
    recipe: Path
    crashed: list[str]


def read_space(given: Sequence[str]) -> list[Range]:
    """Ranges from inline texts and YAML files; ``UserError`` names what cannot be read."""
    out: dict[str, Range] = {}
    for text in given:
        if "=" in text:
            key, _, value = text.partition("=")
            out[key] = _range(key, value)
        else:
            out |= {k: _range(k, v) for k, v in _flat(recipes.read_yaml(Path(text)))}
    if not out:
        raise UserError("nothing to search: give --space key=low:high[:log], key=a|b, or a YAML file of such lines")
    return list(out.values())


def _flat(block: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = ((f"{prefix}{key}", value) for key, value in block.items())
    return [leaf for k, v in rows for leaf in (_flat(v, f"{k}.") if isinstance(v, dict) else [(k, v)])]


def _range(key: str, value: Any) -> Range:
    if isinstance(value, list) and value:
        return Range(key, choices=tuple(value))
    text = str(value)
    if "|" in text:
        return Range(key, choices=tuple(yaml.safe_load(part) for part in text.split("|")))
    parts = text.split(":")
    log = parts[2:] == ["log"]
    ends = [_number(part) for part in parts[:2]]
    fits = len(parts) == 2 + log and len(ends) == 2 and None not in ends
    if not fits or ends[0] >= ends[1] or (log and ends[0] <= 0):  # type: ignore[operator]
        raise UserError(
            f"cannot read the space {key}={text}: write low:high (low < high), low:high:log (low > 0) or a|b|c"
        )
    return Range(key, ends[0], ends[1], log)  # type: ignore[arg-type]


def _number(text: str) -> float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def tune(
    data: Mapping[str, Any],
    space: Sequence[Range],
    trials: int,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
) -> Best:
    """Search until the study holds ``trials`` trials; ``data`` is the recipe's merged containers.

    ``UserError`` without optuna, when the recipe or the data is wrong, for a folder of another search, and when every
    trial crashed. ``Interrupted`` passes through; call again with ``resume``.
    """
    if find_spec("optuna") is None:
        raise UserError("segue tune needs the package optuna; pip install 'segue[tune]'")
    base = recipes.validate(data)
    if not base.evaluate.data:
        raise UserError("segue tune needs evaluate.data in the recipe: its first set is what is searched for")
    prepare(with_settings(data, {r.key: _middle(r) for r in space}), folder / "none", launch(device))
    _open(folder, base, space, seed, resume)
    with runs.locked(folder):
        study = _study(folder)
        while (trial := _next(study, space, seed, trials)) is not None:
            _try(study, trial, data, folder, device)
        return _best(study, data, folder)


def with_settings(data: Mapping[str, Any], settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some keys set; ``ConfigError`` when one does not fit."""
    return recipes.load(data, [f"{key}={json.dumps(value)}" for key, value in settings.items()], environment={})


def _middle(given: Range) -> Any:
    return given.choices[0] if given.choices else given.low


def _open(folder: Path, recipe: Recipe, space: Sequence[Range], seed: int, resume: bool) -> None:
    """Make the folder, or check that it holds this search."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "study.json"
    known = {"recipe": recipes.to_yaml(recipe), "space": [str(r) for r in space], "seed": seed}
    if not note.exists():
        runs.update(note, **known)
        return
    if not resume:
        raise UserError(f"{folder} already holds a search; use --resume to continue it, or another --out")
    changed = [key for key, value in known.items() if runs.read(note).get(key) != value]
    if changed:
        raise UserError(f"{folder} is a search with another {' and '.join(changed)}; use those, or another --out")


def _study(folder: Path) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{(folder / 'study.db').resolve()}"
    return optuna.create_study(study_name="segue", storage=storage, direction="maximize", load_if_exists=True)


def _next(study: optuna.Study, space: Sequence[Range], seed: int, trials: int) -> optuna.Trial | None:
    """The trial that was stopped, else a new one, else None when there are enough."""
    import optuna

    for frozen in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        stopped = optuna.Trial(study, frozen._trial_id)
        if frozen.user_attrs.get("attempts", 0) < ATTEMPTS:
            return stopped
        stopped.set_user_attr("crashed", f"its process died {ATTEMPTS} times")
        study.tell(frozen.number, WORST)
    if len(study.get_trials(deepcopy=False)) >= trials:
        return None
    number = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed_of(seed, number) % 2**32)
    trial = study.ask()
    for one in space:
        one.suggest(trial)
    return trial


def _try(study: optuna.Study, trial: optuna.Trial, data: Mapping[str, Any], folder: Path, device: str) -> None:
    attempts = trial.user_attrs.get("attempts", 0)
    trial.set_user_attr("attempts", attempts + 1)
    settings = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
    print(f"trial {trial.number}: {settings}", flush=True)
    own = folder / "trials" / str(trial.number)
    try:
        recipe = with_settings(data, trial.params)
        found = run(recipe, own, resume=own.exists(), device=device)
        score = found.stages[recipe.seed][stage_of(recipe).name]["evaluations"][recipe.evaluate.data[0]]["miou"]
    except Interrupted:
        trial.set_user_attr("attempts", attempts)
        raise
    except Exception as error:  # whatever a setting does to a run, the search goes on
        trial.set_user_attr("crashed", (str(error).splitlines() or [type(error).__name__])[0])
        score = None
    value = WORST if score is None else float(score)
    study.tell(trial.number, value)
    print(f"trial {trial.number}: {100 * value:.1f} mIoU{_crash(trial.user_attrs)}", flush=True)


def _crash(attributes: Mapping[str, Any]) -> str:
    return f" (crashed: {attributes['crashed']})" if "crashed" in attributes else ""


def stage_of(recipe: Recipe) -> StageConfig:
    """The stage whose score counts: the adapted one, else the last."""
    return next((s for s in recipe.stages if s.role == "adapted"), recipe.stages[-1])


def choice_rule(recipe: Recipe) -> str:
    """How the best trial is chosen, in the words of every report: whose labels decide."""
    stage = stage_of(recipe)
    labelled = [name for name in method_class(stage).uses_labels if name not in stage.pseudo_labels]
    names = {m.data.partition(":")[0] for stream in labelled for m in stage.data[stream]}
    taught = {name for name in names if recipe.data[name].labels is None}
    return VALIDATION if recipe.evaluate.data[0].partition(":")[0] in taught else ORACLE


def _best(study: optuna.Study, data: Mapping[str, Any], folder: Path) -> Best:
    done = study.get_trials(deepcopy=False)
    crashed = [f"trial {t.number}{_crash(t.user_attrs)}" for t in done if "crashed" in t.user_attrs]
    if len(crashed) == len(done):
        raise UserError(f"every trial crashed; the last: {crashed[-1]}")
    best, miou = study.best_trial, study.best_value
    recipe = with_settings(data, best.params)
    name, chosen = recipe.evaluate.data[0], choice_rule(recipe)
    path = folder / "best.yaml"
    head = (
        f"# segue run {path.name}\n"
        f"# Trial {best.number}, best of {len(done)} ({len(crashed)} crashed): {100 * miou:.1f} mIoU on {name}, last\n"
        f"# checkpoint of stage {stage_of(recipe).name}. Settings chosen by: {chosen}.\n"
    )
    write_text(path, head + recipes.to_yaml(recipe))
    return Best(dict(best.params), miou, best.number, name, chosen, path, crashed)
