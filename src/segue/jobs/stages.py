"""A run is a list of stages; each trains one method and is scored. Finished stages are not run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from segue import checkpoint, pseudo_labels, runs
from segue.config import StageConfig
from segue.data.audit import class_shares
from segue.data.loaders import Stream
from segue.data.steps import Memory, StepImages
from segue.engine import Place, fit
from segue.errors import Interrupted
from segue.jobs import annotate, follow, sinks, validation
from segue.jobs.build import (
    MEMORY,
    Job,
    anchored_on,
    build_method,
    build_streams,
    images_of,
    method_class,
    pseudo_label_folder,
    stream_data,
    weights_source,
)
from segue.jobs.cost import Cost, now, record
from segue.methods.base import Method
from segue.models.anchor import make_anchor
from segue.models.base import SegModel
from segue.progress import Progress, warn
from segue.scoring import score


def run(job: Job, resume: bool) -> dict[str, Any]:
    """Run all stages that are not finished; returns stage name -> stage.json content."""
    results = {}
    for stage in job.recipe.stages:
        record = runs.read(job.stage_folder(stage) / "stage.json") if resume else {}
        done = record.get("status") == "finished"
        results[stage.name] = record if done else _run_stage(job, stage, resume)
    return results


def _run_stage(job: Job, stage: StageConfig, resume: bool) -> dict[str, Any]:
    folder = job.stage_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    cpu = runs.cpu_seconds()
    stored = _describe(stage)
    if job.hardware.rank == 0:
        stored = runs.update(folder / "stage.json", **stored, status="running")
    follow.arrange(job, stage)
    made = _label(job, stage) if stage.pseudo_labels else {}
    method, iterations, training = _trained(job, stage, resume)
    if job.hardware.rank == 0:
        kept = _keep_anchor(job, stage, method) if stage.anchor else None
        evaluations, scoring = _score(job, stage, method)
        runs.update(
            folder / "stage.json",
            status="finished",
            iterations=iterations,
            training=training or stored.get("training"),
            parameters=sum(p.numel() for model in method.scored() for p in model.parameters()),
            evaluations=evaluations,
            scoring=scoring,
            prior=_prior(job, stage),
            pseudo_labels=made,
            annotate=annotate.record(job, stage, evaluations),
            extend=_extended(job, stage, method),
            follow=follow.record(job, stage, method),
            anchor=kept,
            cpu_s=stored.get("cpu_s", 0.0) + runs.cpu_seconds() - cpu,
        )
    job.hardware.barrier()  # the next stage of every rank starts from what rank 0 has written
    return runs.read(folder / "stage.json")


def _trained(job: Job, stage: StageConfig, resume: bool) -> tuple[Method, int, dict[str, Any] | None]:
    """Train, with a pause at each round of annotation; the method, its iterations, and what the last part cost.

    Every part begins like a resumed run: a method as it is first built, then the checkpoint.
    """
    for number, iteration in annotate.schedule(stage):
        if annotate.bought(job, stage, number):
            continue
        method = build_method(job, stage)
        name = stage.start or "start"
        if iteration:
            _train(job, stage, method, resume, bought=number - 1, until=iteration)
            name = f"{stage.name}, iteration {iteration}"
        if waits := job.hardware.agree(_bought(job, stage, number, method, name)):
            raise Interrupted(waits)  # every process stops
        resume = True
    method = build_method(job, stage)
    iterations, training = _train(job, stage, method, resume) if method.trains else (0, None)
    return method, iterations, training


def _bought(job: Job, stage: StageConfig, number: int, method: Method, name: str) -> str:
    """Buy a round (one process does); empty, or what it waits for."""
    if job.hardware.rank == 0:
        try:
            annotate.buy(job, stage, number, method.predictor(), name)
        except Interrupted as waiting:
            return str(waiting)
    return ""


def _place(job: Job, stage: StageConfig, method: Method) -> Place:
    first = job.hardware.rank == 0
    return Place(
        folder=job.stage_folder(stage),
        device=job.hardware.device,
        labels=job.labels_of(stage),
        info={"run": str(job.folder), "stage": stage.name, "recipe": job.recipe.name, "chosen": "last"},
        progress=Progress(stage.name) if first else None,
        watch=_watched(stage, method),
        trained=stage.start is not None,
        warn=warn,
        rank=job.hardware.rank,
        world=job.hardware.world,
    )


def _watched(stage: StageConfig, method: Method) -> tuple[str, ...]:
    """Streams without labels of their own."""
    return tuple(name for name in stage.data if name not in method.uses_labels or name in stage.pseudo_labels)


def _label(job: Job, stage: StageConfig) -> dict[str, Any]:
    """Make the pseudo-labels of a stage (one process does); what is there already is kept. Stream -> data -> record."""
    made: dict[str, Any] = {}
    for stream, given in stage.pseudo_labels.items() if job.hardware.rank == 0 else ():
        models = [checkpoint.load_model(weights_source(job, stage, source))[0] for source in given.models]
        trusted = given.trust.source if given.trust else None
        for text in (mixture.data for mixture in stage.data[stream]):
            if not len(images := images_of(job, stage, text)):
                continue  # a bucket holds none of this data set
            index = pseudo_labels.generate(
                models,
                images,
                job.labels_of(stage),
                pseudo_label_folder(job, stage, stream, text),
                given,
                source=None if trusted is None else job.dataset(trusted, stage.name),
                device=job.hardware.device,
                batch_size=job.recipe.evaluate.batch_size,
                progress=Progress(f"labelling {text}"),
            )
            made.setdefault(stream, {})[text] = {"thresholds": index["thresholds"], "share_kept": index["share_kept"]}
    job.hardware.barrier()
    return made


def _train(
    job: Job,
    stage: StageConfig,
    method: Method,
    resume: bool,
    *,
    bought: int | None = None,
    until: int | None = None,
) -> tuple[int, dict[str, Any] | None]:
    """Train; the number of iterations, and what those of this process cost (None when all were done before)."""
    streams: Mapping[str, Stream] = build_streams(job, stage, bought=bought)
    place, device = _place(job, stage, method), job.hardware.device
    views = [d for stream in streams.values() for d in stream.datasets if isinstance(d, StepImages)]
    for note in dict.fromkeys(note for view in views for note in view.notes if place.rank == 0):
        warn(note)
    start, scoring = now(device), Cost()

    def validate(model: nn.Module, iteration: int) -> dict[str, float]:
        nonlocal scoring
        before = now(device)
        assert isinstance(model, SegModel)
        evaluate = job.recipe.evaluate
        datasets = {text: job.evaluated(stage, text) for text in evaluate.data}
        scores = validation.validate(model, datasets, job.labels_of(stage), evaluate, job.hardware)
        scoring += now(device) - before
        return scores

    found = checkpoint.newest(place.folder / "checkpoints") if resume else None
    done = int(found.name.removeprefix(checkpoint.PREFIX)) if found else 0
    names = job.recipe.loggers if job.hardware.rank == 0 else ()
    with sinks.opened(names, job.folder, place.folder, job.recipe.name) as trackers:
        place = replace(place, validate=validate, sinks=trackers)
        train, optim = job.recipe.train_of(stage), job.recipe.optim_of(stage)
        total = fit(method, streams, train, optim, place, resume=resume, until=until)
    per_epoch = streams[next(iter(streams))].iterations_per_epoch
    return total, record(now(device) - start - scoring, total - done, per_epoch, device) if total > done else None


def _score(job: Job, stage: StageConfig, method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score every validation set and store what the report shows; by data set the scores, and what they cost."""
    given, models, device = job.recipe.evaluate, method.scored(), job.hardware.device
    labels, folder = job.labels_of(stage), job.stage_folder(stage)
    found, costs = {}, {}
    views = tuple(view for view in given.views if view == "all" or view in labels.views) or ("all",)
    measure = score.Measure(views, tasks={} if job.task is None else job.task.tasks(stage.step))
    for text in given.data:
        dataset, before = job.evaluated(stage, text), now(device)
        result = score.measure_models(
            models,
            dataset,
            labels,
            measure,
            device=device,
            batch_size=given.batch_size,
            progress=Progress(f"scoring {text}"),
        )[0]
        costs[text] = asdict(now(device) - before)
        found[text] = score.save(result, folder, text)
        worst = [row["id"] for row in found[text]["worst"][: given.samples]]
        score.save_samples(models, dataset, labels, job.folder, folder, text, count=given.samples, ids=worst)
    return found, costs


def _keep_anchor(job: Job, stage: StageConfig, method: Method) -> dict[str, Any]:
    """Store what the model goes on with where its training images are gone; what it is."""
    assert stage.anchor is not None
    text = anchored_on(stage)
    progress, batch = Progress(f"{stage.name}: anchor from {text}"), job.recipe.evaluate.batch_size
    model, dataset, labels = method.predictor(), job.dataset(text, stage.name), job.labels_of(stage)
    images = stage.anchor.images
    anchor = make_anchor(model, dataset, labels, batch_size=batch, limit=images, progress=progress)
    checkpoint.add_anchor(checkpoint.find_model(job.stage_folder(stage)), anchor)
    return anchor.describe()


def _prior(job: Job, stage: StageConfig) -> dict[str, float] | None:
    """Class shares of the first labelled stream, from evenly spaced labels; what pseudo-labels are compared with."""
    labelled = [name for name in method_class(stage).uses_labels if name not in stage.pseudo_labels]
    if not labelled:
        return None
    shares, _, _ = class_shares(stream_data(job, stage, labelled[0])[0][1])
    return dict(zip(job.labels_of(stage).classes, shares, strict=True))


def _extended(job: Job, stage: StageConfig, method: Method) -> dict[str, Any] | None:
    """What a step of a task was taught with, and what it keeps for later ones."""
    if job.task is None:
        return None
    data = {name: [d for _, d in stream_data(job, stage, name)] for name in stage.data}
    memory = [d for d in data.get(MEMORY, ()) if isinstance(d, Memory)]
    labels = job.labels_of(stage)
    return {
        "task": job.task.name,
        "step": stage.step or "all",
        "treatment": "ignore" if job.task.background is None else "background",
        "taught": [labels.classes[c] for c in job.task.taught(stage.step)],
        "images": sum(len(d) for name in method_class(stage).uses_labels if name != MEMORY for d in data.get(name, ())),
        "old_data": method.old_data,
        "old_images": sum(map(len, memory)),
        "stored_bytes": method.stored_bytes() + sum(d.bytes for d in memory),
    }


def _describe(stage: StageConfig) -> dict[str, Any]:
    data = {name: [m.data for m in row] for name, row in stage.data.items()}
    used = {"start": stage.start, "references": stage.references}
    return {"name": stage.name, "method": stage.method, "data": data, **used, "checkpoint": "last"}
