"""THE training loop: one iteration = micro-batches x yields of the method, one all-reduce, one step of every optimiser.

Everything a method must not know lives here once: device, precision, accumulation, ranks, clipping, NaN policy,
learning rates, logs, checkpoints, resume, signals. On a CPU at one thread count, a run that was killed anywhere and
resumed ends with the same bytes as one that was not.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segue import checkpoint
from segue.alarms import PREFIX, Judge, Look, looks_of
from segue.config import OptimConfig, TrainConfig
from segue.data.batch import Batch
from segue.errors import Interrupted, UserError
from segue.files import write_json
from segue.hardware import average_gradients, gather
from segue.labels import LabelSpace
from segue.methods.base import Method, Terms
from segue.ops.keys import seed_of
from segue.ops.precision import full
from segue.optim import LossScaler, build_optimizers, set_lr
from segue.runs import Metrics
from segue.watch import Lens, Watch

PRECISIONS = {"64": torch.float64, "32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stream(Protocol):
    """An endless, exactly resumable sequence of batches; ``segue.data.loaders.Stream`` is the one."""

    @property
    def iterations_per_epoch(self) -> float:
        """Iterations after which as many images were seen as the stream has."""
        ...

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        """The micro-batches of iteration ``start``, ``start + 1``, …"""
        ...


class Diverged(UserError):
    """The loss or a gradient is not finite any more."""


@dataclass(frozen=True)
class Place:
    """Where a stage trains and what it reports to."""

    folder: Path
    device: torch.device
    labels: LabelSpace
    info: Mapping[str, Any]
    """Goes into every model.json: producing run, stage, recipe."""
    validate: Callable[[nn.Module, int], dict[str, float]] | None = None
    """Scores the predictor at an iteration: data set -> mIoU."""
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None
    """Called with (iterations done, total, latest numbers)."""
    sinks: tuple[Callable[[Mapping[str, Any]], None], ...] = ()
    """Trackers that get each line of metrics.jsonl too."""
    watch: tuple[str, ...] = ()
    """Streams whose predictions are watched (``segue.alarms``), where ``train.watch_every`` says so."""
    trained: bool = False
    """Whether the model starts from a trained one, which it can become worse than."""
    warn: Callable[[str], None] | None = None
    """Called with the sentence of every alarm."""
    rank: int = 0
    world: int = 1


def fit(
    method: Method,
    streams: Mapping[str, Stream],
    train: TrainConfig,
    optim: OptimConfig,
    place: Place,
    *,
    resume: bool,
    until: int | None = None,
) -> int:
    """Train; returns the number of iterations done. The last checkpoint in ``place.folder/checkpoints`` is the result.

    ``until``: pause there, all saved, to be resumed with other streams; default the end.
    Raises ``Diverged`` (batch ids in nan_batch.json), ``Interrupted`` after SIGTERM or SIGINT with all saved.
    """
    return _Loop(method, streams, train, optim, place, until).run(resume)


class _Loop:
    def __init__(
        self,
        method: Method,
        streams: Mapping[str, Stream],
        train: TrainConfig,
        optim: OptimConfig,
        place: Place,
        until: int | None,
    ) -> None:
        self.method, self.streams, self.train, self.optim, self.place = method, streams, train, optim, place
        self.per_epoch = streams[next(iter(streams))].iterations_per_epoch
        self.total = train.iterations or math.ceil((train.epochs or 1) * self.per_epoch)
        self.until = self.total if until is None else until
        self.root = place.folder / "checkpoints"
        method.to(place.device)
        if place.world > 1:
            method.gather = gather
        if train.precision == "64":
            method.double()
        if train.channels_last:
            method.to(memory_format=torch.channels_last)
        self.optimizers = build_optimizers(method.networks(), optim)
        self.parameters = [p for o in self.optimizers.values() for g in o.param_groups for p in g["params"]]
        self.scaler = LossScaler(train.precision == "fp16")
        self.iteration = 0
        self.skipped = 0
        self.best: dict[str, Any] = {}
        self.pending: list[dict[str, Tensor]] = []
        self.metrics: Metrics | None = None
        self.watch = self._watch()
        self.judge = Judge(place.trained, self.total)
        for network in method.networks().values() if train.compile else ():
            network.compile()

    def run(self, resume: bool) -> int:
        found = checkpoint.newest(self.root) if resume else None
        stop = 0
        with _signals() as received:
            self._restore(found) if found else self._begin()
            if self.iteration >= self.until:
                return self.iteration
            batches = {name: stream.iterate(self.iteration) for name, stream in self.streams.items()}
            self.method.train()
            while self.iteration < self.until:
                self._iterate({name: next(it) for name, it in batches.items()})
                self.iteration += 1
                stop = self._heard(received)
                self._after_iteration(stop)
        if self.iteration == self.total:
            self.method.finish(self.streams)
        self._save()
        if stop:
            raise _interrupted(stop, self.iteration)
        return self.iteration

    def _heard(self, received: list[int]) -> int:
        """The signal that stops the run, 0 for none; the same on every device, which all stop after one iteration."""
        signal_number = received[0] if received else 0
        if self.place.world == 1:
            return signal_number
        heard = torch.tensor(signal_number, device=self.place.device)
        dist.all_reduce(heard, dist.ReduceOp.MAX)
        return int(heard)

    def _watch(self) -> Watch | None:
        """Made before anything is restored or trained: it keeps what the start predicts."""
        if not (self.train.watch_every and self.place.watch):
            return None
        watched = {name: self.streams[name] for name in self.place.watch}
        return Watch(watched, self.method.predictor(), Lens(self._to_device, self._autocast, self.place.world))

    def _begin(self) -> None:
        if self.place.rank == 0:
            self.metrics = Metrics(self.place.folder / "metrics.jsonl")
        if self.watch:
            self._note(self.watch.at_start)
        if self.place.world > 1:
            for tensor in (*self.method.parameters(), *self.method.buffers()):
                dist.broadcast(tensor.detach(), 0)
        self.method.prepare(self.streams)

    def _iterate(self, micro: dict[str, list[Batch]]) -> None:
        if self.method.model.thaw(self.iteration / self.total):
            self.method.train()  # a part that is trained from now on updates its norm statistics
        lr = set_lr(self.optimizers, self.optim, self.iteration, self.total, self.per_epoch)
        if self.place.world > 1:
            micro = {name: _global_counts(batches, self.place) for name, batches in micro.items()}
        logs: dict[str, Tensor] = {}
        for index in range(self.train.accumulate):
            given = {name: batches[index] for name, batches in micro.items()}
            self._backward(given, index, logs)
        gradients = self._gradients()
        self.scaler.unscale(gradients)
        finite = self._clip(logs)
        if not finite and (not self.scaler.enabled or self.scaler.scale <= 1.0):
            raise self._diverged(logs, micro)  # before a step that would spoil the weights
        if finite:
            self.method.before_step(self.iteration)
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.method.after_step(self.iteration)
        else:
            self.skipped += 1
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update(overflow=not finite)
        logs["lr"] = torch.tensor(lr)
        self.pending.append(logs)

    def _backward(self, given: dict[str, Batch], index: int, logs: dict[str, Tensor]) -> None:
        """All graphs of one micro-batch; each is freed before the next is built."""
        share = 1.0 / self.train.accumulate
        torch.manual_seed(seed_of(*self.method.key, "dropout", self.iteration, index, self.place.rank))
        graphs = self.method.losses({name: self._to_device(batch) for name, batch in given.items()}, self.iteration)
        while True:
            with self._autocast():
                terms = next(graphs, None)
            if terms is None:
                return
            loss = torch.stack([full(t) for t in terms.values()]).sum() * share if terms else None
            if loss is not None and loss.requires_grad:
                (loss * self.scaler.scale).backward()  # type: ignore[no-untyped-call]
            _add(logs, terms, share)

    def _to_device(self, batch: Batch) -> Batch:
        batch = batch.to(self.place.device)
        image = batch.image.double() if self.train.precision == "64" else batch.image
        if self.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return replace(batch, image=image)

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.train.precision]
        enabled = dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.place.device.type, dtype=dtype if enabled else None, enabled=enabled)

    def _gradients(self) -> list[Tensor]:
        """Gradients of all networks, averaged over the devices by one flattened all-reduce."""
        if self.place.world > 1 and self.parameters:
            average_gradients(self.parameters, self.place.world)
        return [p.grad for p in self.parameters if p.grad is not None]

    def _clip(self, logs: dict[str, Tensor]) -> bool:
        """Log each network's gradient norm and clip it on its own; whether all gradients are finite."""
        for name, optimizer in self.optimizers.items():
            own = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            if not own:
                continue
            norm = nn.utils.get_total_norm([p.grad for p in own if p.grad is not None])
            if self.train.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(own, self.train.clip_norm, norm)
            logs[f"gradient_norm/{name}"] = norm.detach()
        norms = [v for k, v in logs.items() if k.startswith(("loss/", "gradient_norm/"))]
        return not norms or bool(torch.stack([v.float() for v in norms]).isfinite().all())

    def _diverged(self, logs: dict[str, Tensor], micro: dict[str, list[Batch]]) -> Diverged:
        ids = {name: [m.id for b in batches for m in b.meta] for name, batches in micro.items()}
        bad = [k for k, v in logs.items() if v.numel() == 1 and not bool(v.isfinite())]
        path = self.place.folder / "nan_batch.json"
        write_json(path, {"iteration": self.iteration, "terms": bad, "ids": ids})
        return Diverged(
            f"training diverged at iteration {self.iteration}: {', '.join(bad)} is not finite; image ids are in "
            f"{path}; lower optim.lr or set train.clip_norm, then start again (the last checkpoint is good)"
        )

    def _after_iteration(self, stop: int) -> None:
        train, done = self.train, self.iteration == self.total
        if self.iteration % train.log_every == 0 or done:
            self._flush()
        if self.watch and train.watch_every and self.iteration % train.watch_every == 0:
            number = self.iteration // train.watch_every - 1
            self._note(self.watch.looks(self.method.predictor(), self.iteration, number))
            self.method.train()
        due = train.evaluate_every and self.iteration % train.evaluate_every == 0
        improved = bool(due or (done and train.best)) and self._evaluate()
        if done or self.iteration == self.until:
            return  # saved by run(), after the method has finished
        if stop or improved or self.iteration % train.checkpoint_every == 0:
            self._save()
        if stop:
            raise _interrupted(stop, self.iteration)

    def _flush(self) -> None:
        """One line of metrics.jsonl: the mean of every number since the last line."""
        row: dict[str, Any] = {"iteration": self.iteration}
        for key in dict.fromkeys(k for logs in self.pending for k in logs):
            values = torch.stack([logs[key].double().cpu() for logs in self.pending if key in logs])
            row[key] = values.mean(0).tolist()
        if self.skipped:
            row["skipped_steps"] = self.skipped
        self.pending = []
        self._write(row)
        if self.place.progress:
            self.place.progress(self.iteration, self.total, {k: v for k, v in row.items() if isinstance(v, float)})

    def _note(self, looks: Sequence[Look]) -> None:
        """Write looks, and tell the alarms that they raise."""
        classes = self.place.labels.classes
        for look in looks if self.place.rank == 0 else ():
            self._write(look.row())
            for alarm in self.judge.add(look):
                self._write(alarm.row(classes))
                if self.place.warn:
                    self.place.warn(alarm.text(classes))

    def _write(self, row: dict[str, Any]) -> None:
        if self.metrics is None:
            return
        self.metrics.write(row)
        for sink in self.place.sinks:
            sink(row)

    def _evaluate(self) -> bool:
        """Score the predictor; whether it is the best so far."""
        if self.place.validate is None:
            return False
        scores = self.place.validate(self.method.predictor(), self.iteration)
        self.method.train()
        self._write({"iteration": self.iteration, **{f"miou/{name}": value for name, value in scores.items()}})
        name = self.train.best
        if name is None or not scores[name] > self.best.get("miou", -1.0):
            return False
        self.best = {"iteration": self.iteration, "data": name, "miou": scores[name]}
        return True

    def _save(self) -> None:
        if self.place.rank != 0:
            return
        assert self.metrics is not None
        state = {
            "iteration": self.iteration,
            "method": self.method.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "scaler": self.scaler.state(),
            "skipped": self.skipped,
            "best": self.best,
            "pending": self.pending,
            "metrics_bytes": self.metrics.size_bytes,
        }
        info = {**self.place.info, "iteration": self.iteration}
        checkpoint.save(self.root, self.iteration, self.method.predictor(), self.place.labels, info, state)
        if self.best:
            write_json(self.root / "best.json", self.best)
        checkpoint.prune(self.root, self.train.keep, self.best.get("iteration"))

    def _restore(self, folder: Path) -> None:
        state = checkpoint.load_state(folder)
        self.method.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.scaler.restore(state["scaler"])
        self.iteration, self.skipped, self.best = state["iteration"], state["skipped"], state["best"]
        self.pending = state["pending"]
        if self.place.rank == 0:
            path = self.place.folder / "metrics.jsonl"
            self.metrics = Metrics(path, keep_bytes=state["metrics_bytes"])
            for look in looks_of(json.loads(row) for row in path.read_text("utf-8").splitlines() if PREFIX in row):
                self.judge.add(look)  # its alarms are in the file


def _add(logs: dict[str, Tensor], terms: Terms, share: float) -> None:
    """Add a yield's numbers to the iteration's, micro-batches averaged."""
    rows = {f"loss/{k}": v for k, v in terms.items()} | {f"log/{k}": v for k, v in terms.logs.items()}
    for key, value in rows.items():
        value = value.detach().float() * share
        logs[key] = logs[key] + value if key in logs else value


def _global_counts(batches: list[Batch], place: Place) -> list[Batch]:
    """Counts of pixels over all ranks: every rank's loader knows only its own part of the sums."""
    sums = torch.cat([batches[0].label_count.view(1), batches[0].tally()]).to(place.device)
    dist.all_reduce(sums)
    return [replace(b, label_count=sums[0], counts=sums[1:]) for b in batches]


def _interrupted(stop: int, iteration: int) -> Interrupted:
    return Interrupted(f"stopped by {signal.Signals(stop).name} after iteration {iteration}, all is saved")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that holds the first SIGTERM or SIGINT; a second one ends the process as usual."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in (int(signal.SIGTERM), int(signal.SIGINT)):
            previous[number] = signal.signal(number, note)
    except ValueError:
        pass  # not the main thread: signals are the caller's
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
