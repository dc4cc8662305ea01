"""What every part promises under every host; a new part or host is picked up by itself."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.anchored import anchor
from helpers.command import Outcome, refused, segue, write_recipe
from helpers.memory import SPACE, batch, method, model
from helpers.recipes import recipe, trained_methods
from segue.data.batch import Batch
from segue.errors import UserError
from segue.labels import load_space
from segue.methods.base import METHODS, Method, Terms
from segue.methods.parts.base import PARTS, Part, PartConfig, View, part_configs
from segue.models.base import Output, SegModel

WORKS = {
    "feature_distance": {
        *("adversarial", "fda", "minent", "pseudo_labels", "self_training", "supervised"),
        *("cil", "ewc", "ilt", "lwf", "mib", "plop", "replay"),
    },
    "masked_consistency": {"adversarial", "fda", "minent", "pseudo_labels", "self_training", "weak_labels"},
    "source_anchor": {"adversarial", "minent", "pseudo_labels", "self_training", "weak_labels"},
}
"""Hosts of these parts; for any other part the contract below holds all the same."""
SMALL: dict[str, dict[str, Any]] = {
    "foundation_distance": {"encoder": "test_vit", "weights": "none", "image_px": 32},
    "instance_similarity": {"size": 8, "start": "random", "every_iterations": 1},
}
"""Settings that tests need: no download, no large network, and a bank that is full from the start."""
PAIRS = [(part, host) for part in PARTS.names() for host in trained_methods()]


def make(host: str, part: str, net: SegModel | None = None, **settings: Any) -> Method:
    net = net or model()
    net.anchor = anchor()
    built: Method = method(host, net, parts={part: {**SMALL.get(part, {}), **settings}})
    return built


def batches(built: Method, seed: int = 0) -> dict[str, Batch]:
    return {stream: batch(10 * i + seed) for i, stream in enumerate(built.needs)}


def train(built: Method, iterations: int, start: int = 0) -> list[dict[str, float]]:
    """Loss terms of some iterations, driven as the engine does."""
    networks = built.networks().values()
    optimizer = torch.optim.SGD([p for n in networks for p in n.parameters() if p.requires_grad], lr=0.01)
    found = []
    for iteration in range(start, start + iterations):
        row: dict[str, float] = {}
        for terms in built.losses(batches(built, iteration), iteration):
            if terms:
                torch.stack(list(terms.values())).sum().backward()
            row |= {k: float(v.detach()) for k, v in terms.items()}
        optimizer.step()
        optimizer.zero_grad()
        built.after_step(iteration)
        found.append(row)
    return found


@pytest.mark.parametrize(("part", "host"), PAIRS)
def test_a_part_works_under_a_host_or_says_what_is_missing(part: str, host: str) -> None:
    try:
        built = make(host, part)
    except UserError as error:
        assert host not in WORKS.get(part, set()), error
        message = str(error)
        assert part in message and "\n" not in message
        if f"method.parts.{part}=null" not in message:
            assert "method.parts" not in message, "it lacks something else than a view, and says so"
        else:
            assert repr(host) in message
        return
    assert part not in WORKS or host in WORKS[part]
    plain = method(host)
    plain.load_state_dict({k: v for k, v in built.state_dict().items() if not k.startswith("parts.")})
    state = torch.get_rng_state()
    (with_part,) = train(built, 1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    (alone,) = train(plain, 1)
    assert all(torch.isfinite(torch.tensor(v)) for v in with_part.values())
    assert alone.keys() < with_part.keys(), "terms of a part have names of their own"
    shared = {k: v for k, v in with_part.items() if k in alone}
    assert shared == pytest.approx(alone, rel=1e-5), "a part adds terms and changes none of the host's first losses"


@pytest.mark.parametrize("part", PARTS.names())
def test_null_switches_a_part_off(part: str) -> None:
    built = method("self_training", model(), parts={part: None})
    plain = method("self_training", model())
    assert not built.parts and built.state_dict().keys() == plain.state_dict().keys()
    assert train(built, 1) == train(plain, 1)


@pytest.mark.parametrize("part", PARTS.names())
def test_what_a_part_owns_is_saved_and_a_resumed_run_goes_on_to_the_bit(part: str, tmp_path: Path) -> None:
    built = make("self_training", part)
    train(built, 2)
    torch.save(built.state_dict(), tmp_path / "state.pt")
    other = make("self_training", part)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.add_(1)  # nothing of this is left
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert train(built, 2, start=2) == train(other, 2, start=2)
    for name, value in built.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("part", PARTS.names())
def test_every_part_and_setting_is_described(part: str) -> None:
    cls = PARTS.get(part)
    assert cls.__doc__ and issubclass(cls, Part) and issubclass(cls.Config, PartConfig)
    fields = cls.Config.model_fields
    assert any(name.endswith("weight") for name in fields), "every part has a factor"
    undescribed = [n for n, f in fields.items() if not f.description and n != "criterion"]
    assert not undescribed, undescribed
    assert part in segue("list", "parts").out


@pytest.mark.parametrize(
    ("host", "part"),
    [
        *((host, "masked_consistency") for host in ("adversarial", "minent", "fda", "pseudo_labels")),
        *(("self_training", part) for part in PARTS.names()),
    ],
)
def test_nothing_of_a_graph_outlives_it(host: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = make(host, part)
    alive: list[weakref.ref[Tensor]] = []
    real = built.model.forward

    def watched(image: Tensor) -> Output:
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        output = real(image)
        alive.extend(weakref.ref(t) for t in (output.embedding, *output.stages))
        return output

    monkeypatch.setattr(built.model, "forward", watched)
    graphs = built.losses(batches(built), 0)
    while (terms := next(graphs, None)) is not None:
        torch.stack(list(terms.values())).sum().backward()
        del terms
    assert len(alive) >= 12 and len(alive) % 6 == 0


class Doubled(Part):
    """A part for tests: half the mean of the logits of a view, and a constant of its own."""

    views = ("source",)

    def __init__(self, config: PartConfig, host: Method) -> None:
        super().__init__(config, host)
        self.head = torch.nn.Linear(1, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def networks(self) -> dict[str, torch.nn.Module]:
        return {"doubled": self.head}

    def terms(self, view: View, host: Method) -> Terms | None:
        if view.name != "source":
            return None
        return Terms({"seen": torch.tensor(1.0)}, doubled=view.output.logits.mean() / 2)

    def graphs(self, batches: Any, host: Method, iteration: int) -> Any:
        yield Terms(constant=self.head.weight.sum())

    def calibrate(self, probability: Tensor, output: Output, host: Method) -> Tensor:
        return probability.flip(1)

    def after_step(self, host: Method, iteration: int) -> None:
        self.get_buffer("steps").add_(1)


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    PARTS.names()
    monkeypatch.setitem(PARTS._classes, "doubled", Doubled)


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("host", sorted(WORKS["feature_distance"]))
def test_every_host_lets_a_part_join_train_and_count(host: str) -> None:
    built = make(host, "doubled")
    assert set(built.networks()) >= {"model", "doubled"}
    graphs = []
    for terms in built.losses(batches(built), 0):
        graphs.append(list(terms))
        if "doubled" in terms:
            assert float(terms.logs["seen"]) == 1
    assert (graphs[0][0], graphs[0][-1], graphs[-1]) == ("source", "doubled", ["constant"])
    before = built.parts["doubled"].head.weight.detach().clone()
    train(built, 3)
    assert int(built.parts["doubled"].steps) == 3
    torch.testing.assert_close(built.parts["doubled"].head.weight, before - 0.03)


@pytest.mark.usefixtures("doubled")
def test_a_part_may_change_the_probabilities_before_they_become_labels() -> None:
    target = batch(2)
    flipped, _, _ = make("self_training", "doubled").pseudo_label(target, 0)
    plain, _, _ = method("self_training", model()).pseudo_label(target, 0)
    assert torch.equal(flipped.label, 6 - plain.label) and torch.equal(flipped.weight, plain.weight)


@pytest.mark.usefixtures("doubled")
def test_parts_run_in_the_recipes_order() -> None:
    first = method("supervised", parts={"doubled": {}, "feature_distance": {}})
    second = method("supervised", parts={"feature_distance": {}, "doubled": {}})
    names = [list(next(m.losses({"source": batch(0)}, 0))) for m in (first, second)]
    assert names == [["source", "doubled", "feature_distance"], ["source", "feature_distance", "doubled"]]


def test_the_views_of_self_training(monkeypatch: pytest.MonkeyPatch) -> None:
    built = method("self_training", model(), threshold=0.2)
    views: list[View] = []
    monkeypatch.setattr(built.parts, "join", lambda terms, view, host: views.append(view) or terms)
    source, target = batch(0), batch(1)
    list(built.losses({"source": source, "target": target}, 6))
    first, second = views
    assert first.name == "source" and first.batch is source and first.pasted is None and first.teacher is None
    assert second.name == "mixed" and first.iteration == second.iteration == 6
    pseudo, seen, _ = built.pseudo_label(target, 6)
    assert second.pasted is not None and second.teacher is not None
    pasted = second.pasted
    assert second.output.logits.requires_grad and not second.teacher.logits.requires_grad
    torch.testing.assert_close(second.teacher.logits, seen.logits)
    assert torch.equal(second.batch.label, torch.where(pasted, source.label, pseudo.label))
    assert torch.equal(second.batch.weight, torch.where(pasted, torch.ones(()), pseudo.weight))


def test_a_host_without_views_takes_no_parts() -> None:
    with pytest.raises(UserError, match=r"'batch_statistics' takes no parts.*method.parts.masked_consistency=null"):
        make("batch_statistics", "masked_consistency")


def test_a_missing_stream_is_named_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"'masked_consistency' needs the stream target.*'supervised'.*has source"):
        make("supervised", "masked_consistency")


@pytest.mark.parametrize("given", [{}, None])
def test_a_misspelt_part_is_told_even_where_it_is_switched_off(given: dict[str, Any] | None) -> None:
    with pytest.raises(UserError, match=r"unknown part 'feature_distanc' \(did you mean 'feature_distance'"):
        part_configs({"feature_distanc": given})


def test_faults_of_all_parts_are_told_at_once() -> None:
    wrong = {"feature_distance": {"min_shar": 1}, "masked_consistency": {"ratio": 2, "teacher": {"alfa": 1}}}
    with pytest.raises(UserError) as caught:
        part_configs(wrong, "stages.second.method")
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert "stages.second.method.parts.feature_distance.min_shar" in lines[0] and "min_share" in lines[0]
    assert "parts.masked_consistency.ratio" in lines[1] and "it is 2" in lines[1]
    assert "parts.masked_consistency.teacher.alfa" in lines[2] and "'alpha'" in lines[2]


def validated(folder: Path, host: str, **parts: Any) -> Outcome:
    data = recipe(folder, host)
    data["stages"][1]["method"] = {"name": host, "parts": parts}
    return segue("config", "validate", write_recipe(folder / "recipe.yaml", data))


def test_the_command_tells_a_part_that_does_not_exist(tmp_path: Path) -> None:
    assert "no faults" in validated(tmp_path, "self_training", feature_distance={}, masked_consistency=None).out
    refused(validated(tmp_path, "self_training", masked={}), "unknown part 'masked'", "masked_consistency")
    refused(
        validated(tmp_path, "self_training", feature_distance={"weigth": 1}),
        "stages.second.method.parts.feature_distance.weigth",
        "did you mean 'weight'",
    )
    refused(validated(tmp_path, "minent", masked_consistency={"images": "targets"}), "'target', 'source' or 'both'")


def test_a_run_is_refused_before_its_first_stage_trains(scene_data: Path, tmp_path: Path) -> None:
    data = recipe(scene_data, "supervised")
    data["stages"][1]["method"] = {"name": "supervised", "parts": {"masked_consistency": {}}}
    out = segue("run", write_recipe(tmp_path / "recipe.yaml", data), "--out", tmp_path / "run", "--device", "cpu")
    refused(out, "stage 'second'", "'masked_consistency' needs the stream target", "'supervised'")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.safetensors"))


def test_things_of_the_spaces_are_classes_that_exist() -> None:
    for name in ("cityscapes19", "street7"):
        space = load_space(name)
        assert 0 < len(space.view("things")) < len(space)
    assert SPACE.name == "street7" and METHODS.get("self_training").views == ("source", "mixed", "pseudo")
