"""Distance to a foundation transformer: its formula, whose graph it is in, what is trained, saved and left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.memory import SPACE, batch, method, model
from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import METHODS, Method
from segue.methods.parts.base import View
from segue.methods.parts.foundation_distance import FoundationDistance
from segue.models.base import SegModel
from segue.models.build import build_model

FORM: dict[str, Any] = {"encoder": "test_vit", "weights": "none", "image_px": 48}
TRANSFORMER = {"name": "vit", "encoder": "test_vit", "channels": 8}


def make(name: str = "self_training", net: SegModel | None = None, **form: Any) -> Method:
    built: Method = method(name, net, parts={"foundation_distance": FORM | form})
    return built


def part_of(built: Method) -> FoundationDistance:
    found = built.parts["foundation_distance"]
    assert isinstance(found, FoundationDistance)
    return found


def value(built: Method, given: Batch) -> Tensor:
    return part_of(built).distance(given, built.model(given.image), built)


def by_hand(built: Method, given: Batch, sides: tuple[int, int]) -> Tensor:
    """Cell by cell in double precision; the student's map covers the padded image."""
    part = part_of(built)
    assert part.frozen is not None
    with torch.no_grad():
        output = built.model(given.image)
        theirs = part.frozen.network(F.interpolate(given.image, sides, mode="bilinear")).stages[-1]
        grid = theirs.shape[-2:]
        full = [round(output.padded[i] * grid[i] / output.size[i]) for i in (0, 1)]
        own = part.projection(output.stages[-1])
        mine = F.interpolate(own, full, mode="bilinear", align_corners=output.align_corners)
        share = F.adaptive_avg_pool2d(given.pixel.double(), grid)
    images = []
    for n in range(len(mine)):
        total = count = torch.zeros((), dtype=torch.double)
        for i in range(grid[0]):
            for j in range(grid[1]):
                a, b = mine[n, :, i, j], theirs[n, :, i, j]
                gap = (a - b).abs()
                smooth = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
                cosine = (a @ b) / (a.norm() * b.norm())
                total = total + share[n, i, j] * (0.1 * smooth + 0.9 * (1 - cosine))
                count = count + share[n, i, j]
        images.append(total / count)
    return torch.stack(images).mean()


@pytest.mark.parametrize(("size", "sides"), [((64, 128), (48, 96)), ((128, 64), (96, 48)), ((70, 90), (48, 64))])
@pytest.mark.parametrize("picture", [1.0, 0.6])
def test_distance_is_that_of_the_formula(size: tuple[int, int], sides: tuple[int, int], picture: float) -> None:
    built = make(net=model(norm="frozen"))
    built.model.eval()
    with torch.no_grad():
        part_of(built).projection[-1].weight *= 30  # type: ignore[operator]
    built.double()
    given = batch(1, height=size[0], width=size[1])
    given = replace(given, image=given.image.double())
    given.pixel[0, :, int(picture * size[1]) :] = False
    torch.testing.assert_close(value(built, given), by_hand(built, given, sides), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("encoder", "image_px", "size", "seen"),
    [
        ("test_vit", 406, (512, 512), (400, 400)),  # 25 patches of 16
        ("vit_small_patch14_dinov2", 406, (512, 512), (406, 406)),
        ("vit_small_patch14_dinov2", 406, (256, 512), (406, 812)),
        ("vit_small_patch14_dinov2", 32, (512, 256), (70, 42)),  # the least a network takes is 32
    ],
)
def test_the_frozen_network_sees_whole_patches(
    encoder: str, image_px: int, size: tuple[int, int], seen: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = make(encoder=encoder, image_px=image_px)
    given = batch(0, 1, *size)
    sides: list[tuple[int, ...]] = []
    frozen = part_of(built).frozen
    assert frozen is not None

    def features(image: Tensor) -> tuple[Tensor]:
        sides.append(tuple(image.shape[-2:]))
        return (torch.ones(1, frozen.network.encoder.embed_dim, 3, 3),)  # type: ignore[union-attr]

    monkeypatch.setattr(frozen.network, "features", features)
    value(built, given)
    assert sides == [seen]


def test_nothing_that_is_no_picture_counts() -> None:
    built = make(net=model(norm="frozen"))
    given = batch(2)
    none = replace(given, pixel=torch.zeros_like(given.pixel))
    found = value(built, none)
    assert float(found.detach()) == 0
    found.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in built.parameters())


def test_a_student_that_says_the_same_is_at_distance_0() -> None:
    built = make(net=build_model(TRANSFORMER, 7))
    part = part_of(built)
    assert part.frozen is not None
    part.frozen.network.encoder.load_state_dict(built.model.encoder.state_dict())  # type: ignore[union-attr]
    part.projection = torch.nn.Sequential()
    given = batch(0, 2, 48, 80)
    assert float(value(built, given).detach()) == pytest.approx(0, abs=1e-5)
    assert float(value(built, batch(0, 2, 96, 80)).detach()) > 1e-3


def run(built: Method, source: Batch, target: Batch) -> tuple[list[set[str]], int]:
    """Names of the terms of each graph, and how often the student was asked."""
    calls: list[int] = []
    handle = built.model.register_forward_hook(lambda *_: calls.append(1))
    graphs = []
    for terms in built.losses({"source": source, "target": target}, 0):
        graphs.append(set(terms))
        sum(terms.values()).backward()  # type: ignore[union-attr]
    handle.remove()
    return graphs, len(calls)


@pytest.mark.parametrize("name", ["self_training", "minent", "adversarial", "fda", "supervised"])
def test_terms_share_the_graphs_that_a_host_shows(name: str) -> None:
    needs_target = "target" in METHODS.get(name).needs
    built = make(name, **({} if needs_target else {"target_weight": 0}))
    alone: Method = method(name)
    graphs, calls = run(built, batch(0), batch(1))
    before, calls_before = run(alone, batch(0), batch(1))
    own = needs_target and "target" not in built.views
    assert calls == calls_before + own
    assert graphs[0] == before[0] | {"foundation_source"}
    assert sum("foundation_target" in terms for terms in graphs) == needs_target
    assert ({"foundation_target"} in graphs) == own
    assert all(p.grad is not None and bool(p.grad.any()) for p in part_of(built).projection.parameters())


@pytest.mark.parametrize(("weights", "names"), [((0.3, 0), {"source"}), ((0, 0.3), {"target"}), ((0, 0), set())])
def test_weights_scale_the_terms_and_0_leaves_them_out(weights: tuple[float, float], names: set[str]) -> None:
    built = make(net=model(norm="frozen"), source_weight=weights[0], target_weight=weights[1])
    batches = {"source": batch(0), "target": batch(1)}
    found = {k: float(v.detach()) for terms in built.losses(batches, 0) for k, v in terms.items() if "foundation" in k}
    assert set(found) == {f"foundation_{name}" for name in names}
    for name in names:
        wanted = 0.3 * float(value(built, batches[name]).detach())
        assert found[f"foundation_{name}"] == pytest.approx(wanted, rel=1e-5)


def test_student_and_projection_learn_and_the_transformer_does_not() -> None:
    built = make()
    part = part_of(built)
    assert part.frozen is not None
    value(built, batch(0)).backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in built.model.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in part.projection.parameters())
    assert all(p.grad is None and not p.requires_grad for p in part.frozen.network.parameters())
    assert built.networks()["foundation_projection"] is part.projection
    built.train()
    assert not any(m.training for m in part.frozen.network.modules())


def test_the_transformer_moves_with_the_host_and_is_not_saved() -> None:
    built = make()
    part = part_of(built)
    assert part.frozen is not None
    saved = {key for key in built.state_dict() if key.startswith("parts.")}
    assert {key.split(".")[2] for key in saved} == {"projection"}
    own = {id(p) for p in built.parameters()}
    assert not any(id(p) in own for p in part.frozen.network.parameters())
    other = make()
    with torch.no_grad():
        part.projection[0].weight += 1  # type: ignore[operator]
    other.load_state_dict(built.state_dict())
    assert torch.equal(part_of(other).projection[0].weight, part.projection[0].weight)  # type: ignore[arg-type]
    built.double()
    assert {p.dtype for p in part.frozen.network.parameters()} == {torch.float64}
    assert part.frozen.network.mean.dtype == torch.float64


def test_a_reference_can_stand_for_the_transformer() -> None:
    torch.manual_seed(3)
    reference = build_model(TRANSFORMER, 7).eval()
    cls = METHODS.get("self_training")
    given = {"name": "self_training", "parts": {"foundation_distance": {"reference": "big", "image_px": 48}}}
    config = cls.Config.model_validate(given)
    built = cls(config, model(), SPACE, {"big": reference})
    part = part_of(built)
    assert part.frozen is None and part.projection[-1].out_channels == 64
    assert float(value(built, batch(0)).detach()) > 0
    with pytest.raises(UserError, match=r"reference 'big'; known: none"):
        cls(config, model(), SPACE, {})


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("supervised", {}, "needs the stream target"),
        ("self_training", {"weights": "/nowhere/w.pth"}, "part 'foundation_distance'.*no file /nowhere/w.pth"),
        ("self_training", {"encoder": "resnet18"}, "part 'foundation_distance'.*no plain vision transformer"),
    ],
)
def test_what_cannot_be_is_refused(name: str, form: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **form)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    donor = build_model(TRANSFORMER, 7).get_submodule("encoder").state_dict()
    torch.save(donor, tmp_path / "w.pth")
    frozen = part_of(make(weights=str(tmp_path / "w.pth"))).frozen
    assert frozen is not None
    own = frozen.network.get_submodule("encoder").state_dict()
    assert all(torch.equal(tensor, donor[key]) for key, tensor in own.items())


def test_other_views_are_left_alone() -> None:
    built = make()
    given = batch(0)
    view = View("mixed", given, built.model(given.image), 0)
    assert part_of(built).terms(view, built) is None
