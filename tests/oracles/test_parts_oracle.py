"""What the parts of self-training compute, against loops in float64 written from the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.memory import SPACE, method, model
from segue.data.batch import Batch, Meta
from segue.methods.base import Method
from segue.methods.parts.base import View
from segue.methods.trust import Margin, TrustConfig, trusted
from segue.models.base import SegModel
from segue.ops.cells import cell_classes
from segue.ops.keys import generator
from segue.ops.masking import block_mask

IGNORE = 255
GRIDS = [((64, 96), (2, 3)), ((70, 50), (3, 2)), ((64, 64), (3, 5)), ((33, 47), (33, 47)), ((40, 40), (1, 1))]


def cell_class(pixels: list[int], classes: int, min_share: float) -> int:
    """The commonest id of a cell, 255 for one that is too rare or no class."""
    ids = [p if 0 <= p < classes else IGNORE for p in pixels]
    best = min(set(ids), key=lambda c: (-ids.count(c), c))
    return best if ids.count(best) >= min_share * len(ids) else IGNORE


def cells_by_hand(label: Tensor, padded: tuple[int, int], grid: tuple[int, int], classes: int, share: float) -> Tensor:
    out = torch.empty(len(label), *grid, dtype=torch.int64)
    members: dict[tuple[int, int, int], list[int]] = {}
    for n in range(len(label)):
        for y in range(padded[0]):
            for x in range(padded[1]):
                inside = y < label.shape[1] and x < label.shape[2]
                cell = (n, y * grid[0] // padded[0], x * grid[1] // padded[1])
                members.setdefault(cell, []).append(int(label[n, y, x]) if inside else IGNORE)
    for cell, pixels in members.items():
        out[cell] = cell_class(pixels, classes, share)
    return out


def blocky(seed: int, size: tuple[int, int], block: int = 16, noise: float = 0.15, images: int = 2) -> Tensor:
    """Blocks of one id, 255 among them, with a share of pixels of another."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, IGNORE])
    rows, columns = (-(-side // block) for side in size)
    coarse = ids[torch.randint(0, 8, (images, rows, columns), generator=g)]
    label = coarse.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, : size[0], : size[1]]
    other = ids[torch.randint(0, 8, label.shape, generator=g)]
    return torch.where(torch.rand(label.shape, generator=g) < noise, other, label)


@pytest.mark.parametrize("share", [0.75, 0.5, 0.0])
@pytest.mark.parametrize(("size", "grid"), GRIDS)
def test_cell_classes(size: tuple[int, int], grid: tuple[int, int], share: float) -> None:
    label = blocky(1, size)
    for padded in (size, (size[0] + 13, size[1] + 6)):
        found = cell_classes(label, padded, grid, 5, share)  # ids 5 and 6 are no classes here
        assert torch.equal(found, cells_by_hand(label, padded, grid, 5, share))
        assert found.shape == (2, *grid) and found.dtype == torch.int64
    assert grid == (1, 1) or len(cell_classes(label, size, grid, 5, 0.0).unique()) > 1


def test_exactly_three_quarters_is_enough_and_one_pixel_less_is_not() -> None:
    """DAFormer: 0.75 of a cell of 32x32."""
    label = torch.full((1, 32, 64), 3)
    label[0, :8] = 6
    label[0, 8, 32] = 6
    assert cell_classes(label, (32, 64), (1, 2), 7, 0.75).tolist() == [[[3, IGNORE]]]
    label[0, :8] = IGNORE  # unlabelled pixels count as pixels
    assert cell_classes(label, (32, 64), (1, 2), 7, 0.75).tolist() == [[[3, IGNORE]]]
    label[0, 8:] = torch.where(torch.arange(64) % 2 == 0, 3, 4)
    assert cell_classes(label, (32, 64), (1, 2), 7, 0.3).tolist() == [[[3, 3]]]
    label[0, :20] = IGNORE
    assert cell_classes(label, (32, 64), (1, 2), 7, 0.1).tolist() == [[[IGNORE, IGNORE]]], "most pixels are unlabelled"
    assert cell_classes(label[:, 20:], (32, 64), (1, 2), 7, 0.1).tolist() == [[[IGNORE, IGNORE]]], "or padding"


def host(name: str, net: SegModel, **parts: Any) -> Method:
    built: Method = method(name, net, parts=parts)
    return built.double()


def source(size: tuple[int, int]) -> Batch:
    g = torch.Generator().manual_seed(5)
    label = blocky(4, size, block=32, noise=0.12)
    pixel = torch.ones(label.shape, dtype=torch.bool)
    pixel[1, size[0] // 2 :] = False
    image = torch.rand(2, 3, *size, generator=g, dtype=torch.float64)
    count = torch.tensor(float((label != IGNORE).sum()), dtype=torch.float64)
    return Batch(image, label, pixel, None, count, tuple(Meta(i, str(i), "memory", size) for i in range(2)))


FORMS: dict[str, dict[str, Any]] = {
    "things": {},
    "published": {"mean_over": "batch", "weight": 0.5},
    "four classes": {"classes": ["living", "vehicle", "road", "sky"], "min_share": 0.6},
    "every cell": {"classes": None},
    "every cell of the batch": {"classes": None, "mean_over": "batch"},
}


def counts(form: dict[str, Any], batch: Batch, padded: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Whether a cell counts, by loops."""
    if form.get("classes", "") is None:
        return cells_by_hand(torch.where(batch.pixel, 0, IGNORE), padded, grid, 1, 0.5) == 0
    names = form.get("classes", SPACE.views["things"])
    label = torch.where(batch.pixel, batch.label, IGNORE)
    found = cells_by_hand(label, padded, grid, 7, form.get("min_share", 0.75))
    return torch.isin(found, torch.tensor([SPACE.classes.index(n) for n in names]))


@pytest.mark.parametrize("size", [(64, 96), (70, 116)])
@pytest.mark.parametrize("name", FORMS)
def test_feature_distance_and_its_gradient(name: str, size: tuple[int, int]) -> None:
    form, batch = FORMS[name], source(size)
    built = host("supervised", model(), feature_distance=form)
    part = built.parts["feature_distance"]
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    output = built.model(batch.image)
    deep = output.stages[-1]
    deep.retain_grad()
    terms = part.terms(View("source", batch, output, 0), built)
    assert list(terms) == ["feature_distance"]
    terms["feature_distance"].backward()

    twin = model().double().eval()  # what the student was
    ours, theirs = deep.detach().numpy(), twin(batch.image).stages[-1].detach().numpy()
    counted = counts(form, batch, output.padded, deep.shape[-2:]).numpy()
    distance, unit = np.zeros(counted.shape), np.zeros(ours.shape)
    for n, y, x in np.ndindex(*counted.shape):
        difference = ours[n, :, y, x] - theirs[n, :, y, x]
        distance[n, y, x] = math.sqrt(sum(d * d for d in difference))
        unit[n, :, y, x] = difference / distance[n, y, x]
    over_batch = form.get("mean_over") == "batch"
    share = np.zeros(counted.shape)
    for n in range(2):
        cells = counted.sum() if over_batch else 2 * counted[n].sum()
        share[n] = counted[n] / max(cells, 1)
    weight = form.get("weight", 0.005)
    assert 0 < counted.sum() < counted.size, "the oracle sees both kinds of cells"
    assert float(terms["feature_distance"].detach()) == pytest.approx(weight * (share * distance).sum(), rel=1e-9)
    assert deep.grad is not None
    np.testing.assert_allclose(deep.grad.numpy(), weight * share[:, None] * unit, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [(64, 64), (70, 45), (33, 130)])
@pytest.mark.parametrize("block", [32, 16, 7, 500])
def test_block_mask(size: tuple[int, int], block: int) -> None:
    found = block_mask([generator("mask", i) for i in range(3)], size, block, 0.6)
    assert found.shape == (3, *size) and found.dtype == torch.bool
    rows, columns = (max(1, round(side / block)) for side in size)
    for i, image in enumerate(found):
        kept = torch.rand(rows, columns, generator=generator("mask", i)).tolist()
        for y in range(size[0]):
            for x in range(size[1]):
                assert bool(image[y, x]) == (kept[y * rows // size[0]][x * columns // size[1]] > 0.6)


def test_masked_loss_is_the_mean_over_pixels_of_weighted_cross_entropy() -> None:
    """MIC, eq. 4 to 6, with the teacher's labels q and confident shares computed here from its logits."""
    size = (64, 96)
    settings = {"weight": 0.7, "block_px": 16, "ratio": 0.4, "strong": None}
    built = host("minent", model(norm="frozen"), masked_consistency=settings)
    part = built.parts["masked_consistency"]
    part.trust = TrustConfig(threshold=0.2, margin=Margin(top=0.125))
    with torch.no_grad():
        built.model.get_parameter("head.classifier.weight").mul_(4)
    part.prepare(built, {})
    target = source(size)
    geometry = {"resized": size, "window": (0, 0, *size), "flip": False}
    metas = tuple(Meta(i, "", "memory", size, geometry) for i in (31, 8))
    target = Batch(target.image, torch.full_like(target.label, IGNORE), target.pixel, None, target.label_count, metas)
    built.model.head16 = built.model.head32 = None  # one loss, not three
    (terms,) = part.graphs({"target": target}, built, 5)

    def probabilities(image: Tensor) -> Tensor:
        with torch.no_grad():
            logits = built.model.eval()(image).logits
        whole = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
        return whole.exp() / whole.exp().sum(1, keepdim=True)

    mean = torch.tensor([0.485, 0.456, 0.406]).double()
    masked = target.image.clone()
    for i, meta in enumerate(metas):
        kept = torch.rand(4, 6, generator=built.draw("mask", 5, meta.uid)) > 0.4
        for row, column in (~kept).nonzero().tolist():
            masked[i, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = mean.view(3, 1, 1)
    teacher, student = probabilities(target.image), probabilities(masked)  # the teacher is still the student
    total = 0.0
    for i in range(2):
        real = target.pixel[i]
        sure, label = teacher[i].max(0)
        share = float((sure[real] >= 0.2).double().mean())
        assert 0 < share < 1
        loss = -student[i].gather(0, label[None])[0].log() * share
        loss[:8] = 0
        total += float((loss * real).sum() / real.sum()) / 2
    assert float(terms["masked"].detach()) == pytest.approx(0.7 * total, rel=1e-6)


def test_trust_in_pseudo_labels() -> None:
    g = torch.Generator().manual_seed(2)
    probability = (3 * torch.randn(2, 7, 24, 32, generator=g, dtype=torch.float64)).softmax(1)
    batch = source((24, 32))
    geometry = {"resized": (48, 40), "window": (10, 4, 24, 32), "flip": True}
    metas = tuple(Meta(i, "", "memory", (96, 80), geometry) for i in range(2))
    batch = Batch(batch.image, batch.label, batch.pixel, None, batch.label_count, metas)
    for unit in ("image", "batch", "none"):
        margin = Margin(top=0.3, bottom=0.4, left=0.25, right=0.35)
        config = TrustConfig.model_validate({"threshold": 0.7, "confidence": unit, "margin": margin})
        found, _ = trusted(batch, probability, config)
        assert found.weight is not None
        for n in range(2):
            images = [n] if unit == "image" else [0, 1]
            real = [(i, y, x) for i in images for y in range(24) for x in range(32) if batch.pixel[i, y, x]]
            sure = sum(float(probability[i, :, y, x].max()) >= 0.7 for i, y, x in real)
            for y in range(24):
                for x in range(32):
                    height, width = (y + 10.5) / 48, (31 - x + 4.5) / 40
                    inside = 0.3 <= height < 0.6 and 0.25 <= width < 0.65
                    expected = (1.0 if unit == "none" else sure / len(real)) if inside else 0.0
                    assert float(found.weight[n, y, x]) == pytest.approx(expected)
                    assert int(found.label[n, y, x]) == int(probability[n, :, y, x].argmax())
