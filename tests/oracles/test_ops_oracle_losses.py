"""Losses against loops and the official STDC formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.models.base import Head, Output
from segue.ops.detail import detail_loss, detail_target
from segue.ops.entropy import entropy, robust_entropy
from segue.ops.losses import CriterionConfig, pixel_losses, segmentation
from segue.ops.resize import bilinear


def random_output(n: int = 2, classes: int = 5, size: tuple[int, int] = (32, 48), seed: int = 0) -> Output:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, size[0] // 8, size[1] // 8, generator=g) * 3
    return Output(logits.requires_grad_(), torch.empty(0), size=size, padded=size, num_classes=classes)


def random_label(n: int, classes: int, size: tuple[int, int], seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (n, *size), generator=g)
    return label.masked_fill(torch.rand(n, *size, generator=g) < 0.2, 255)


def loop_cross_entropy(
    logits: np.ndarray, label: np.ndarray, alpha: np.ndarray, gamma: float, smooth: float
) -> np.ndarray:
    """Per pixel, from the definition, in float64."""
    n, c, h, w = logits.shape
    out = np.zeros((n, h, w))
    for i, y, x in np.ndindex(n, h, w):
        if label[i, y, x] == 255:
            continue
        z = logits[i, :, y, x].astype(np.float64)
        p = np.exp(z - z.max())
        p /= p.sum()
        q = np.full(c, smooth / c)
        q[label[i, y, x]] += 1 - smooth
        focus = (1 - p[label[i, y, x]]) ** gamma
        out[i, y, x] = -(q * alpha * np.log(p)).sum() * focus
    return out


@pytest.mark.parametrize(
    "config",
    [
        CriterionConfig(),
        CriterionConfig(class_weights=(1, 2, 0.5, 3, 0)),
        CriterionConfig(label_smoothing=0.1, class_weights=(1, 2, 0.5, 3, 1)),
        CriterionConfig(name="focal", gamma=2, class_weights=(1, 2, 0.5, 3, 1)),
        CriterionConfig(name="focal", gamma=0.5),
    ],
)
def test_pixel_losses_equal_the_definition(config: CriterionConfig) -> None:
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(3)) * 4
    label = random_label(2, 5, (6, 7))
    alpha = np.array(config.class_weights or (1,) * 5, dtype=np.float64)
    gamma = config.gamma if config.name == "focal" else 0.0
    want = loop_cross_entropy(logits.numpy(), label.numpy(), alpha, gamma, config.label_smoothing)
    np.testing.assert_allclose(pixel_losses(logits, label, config).numpy(), want, atol=1e-5, rtol=1e-5)


def test_segmentation_sums_main_heads_and_window() -> None:
    output = random_output()
    g = torch.Generator().manual_seed(5)
    aux, crop = torch.randn(2, 5, 2, 3, generator=g), torch.randn(2, 5, 2, 3, generator=g)
    heads = (Head("aux", aux, weight=0.4), Head("detail", crop, weight=0.1, window=(8, 16, 16, 24)))
    output = Output(output.logits, output.embedding, heads=heads, size=(32, 48), padded=(32, 48), num_classes=5)
    label = random_label(2, 5, (32, 48))
    pixel = torch.rand(label.shape, generator=g) > 0.1
    weight = torch.rand(label.shape, generator=g)
    target = label.masked_fill(~pixel, 255)

    def total(logits: Tensor, at: tuple[slice, ...]) -> Tensor:
        up = F.interpolate(logits, target[at].shape[-2:], mode="bilinear")
        return F.cross_entropy(up, target[at], ignore_index=255, reduction="none") * weight[at]

    everything, window = (slice(None),), (slice(None), slice(8, 24), slice(16, 40))
    count = torch.tensor(123.0)
    share = 16 * 24 / (32 * 48)
    want = (
        total(output.logits, everything).sum() / 123
        + 0.4 * total(aux, everything).sum() / 123
        + 0.1 * total(crop, window).sum() / (123 * share)
    )
    got = segmentation(output, label, weight, pixel=pixel, denominator=count)
    torch.testing.assert_close(got, want)
    per = total(output.logits, everything).sum((1, 2)) / pixel.sum((1, 2))
    plain = Output(output.logits, output.embedding, size=(32, 48), padded=(32, 48), num_classes=5)
    got = segmentation(plain, label, weight, pixel=pixel, denominator="pixels")
    torch.testing.assert_close(got, per.mean())


@pytest.mark.parametrize("scale", [0.2, 5.0], ids=["few-hard", "many-hard"])
def test_ohem_keeps_what_stdc_keeps_in_each_image(scale: float) -> None:
    output = random_output()
    label = random_label(2, 5, (32, 48))
    logits = torch.zeros_like(output.logits) + scale * output.logits.detach()
    if scale < 1:  # nothing is harder than the threshold: n_min decides
        label = F.interpolate(logits, (32, 48), mode="bilinear", align_corners=True).argmax(1)
        logits = logits * 100
    # align_corners: without it the borders repeat and have equal losses, and then we keep all of a tie
    output = Output(logits, output.embedding, size=(32, 48), padded=(32, 48), align_corners=True, num_classes=5)
    want = []
    for i in range(2):
        up = F.interpolate(logits[i : i + 1], (32, 48), mode="bilinear", align_corners=True)
        loss = F.cross_entropy(up, label[i : i + 1], ignore_index=255, reduction="none").flatten()
        ordered = loss.sort(descending=True).values
        n_min = 32 * 48 // 16
        hard = ordered[ordered > -math.log(0.7)]
        want.append(hard.mean() if ordered[n_min] > -math.log(0.7) else ordered[:n_min].mean())
    assert (scale < 1) == (ordered[n_min] < -math.log(0.7)).item()
    got = segmentation(
        output,
        label,
        criterion=CriterionConfig(name="ohem"),
        pixel=torch.ones_like(label, dtype=torch.bool),
        denominator=torch.tensor(1.0),
    )
    torch.testing.assert_close(got, torch.stack(want).mean())


def official_detail_target(label: Tensor) -> Tensor:
    kernel = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]]).view(1, 1, 3, 3)
    x = label.float().unsqueeze(1)
    maps = []
    for stride in (1, 2, 4):
        edge = (F.conv2d(x, kernel, stride=stride, padding=1).clamp(min=0) > 0.1).float()
        maps.append(F.interpolate(edge, label.shape[-2:], mode="nearest"))
    fused = torch.stack(maps, 1).squeeze(2) * torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1)
    return fused.sum(1) > 0.1


def blocks(size: tuple[int, int], seed: int) -> Tensor:
    coarse = torch.randint(0, 19, (2, 5, 7), generator=torch.Generator().manual_seed(seed))
    coarse[0, 0, 0] = coarse[1, 3, 2] = 255
    return F.interpolate(coarse[:, None].float(), size, mode="nearest")[:, 0].long()


@pytest.mark.parametrize("size", [(32, 64), (37, 53)])
def test_detail_target_and_loss_equal_the_official_formula(size: tuple[int, int]) -> None:
    label = blocks(size, 2)
    pixel = torch.ones_like(label, dtype=torch.bool)
    target, known = detail_target(label, pixel, published=True)
    want = official_detail_target(label)
    assert known.all() and 0.02 < want.float().mean() < 0.6
    assert torch.equal(target, want)
    logits = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(7))
    p, t = logits[:, 0].sigmoid().flatten(1), want.float().flatten(1)
    dice = (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()
    bce = F.binary_cross_entropy(p, t)
    torch.testing.assert_close(detail_loss(logits, label, pixel=pixel, published=True), bce + dice)


def test_detail_target_differs_from_the_official_one_only_at_the_frame_and_near_unlabelled_pixels() -> None:
    label = blocks((40, 60), 4)
    pixel = torch.ones_like(label, dtype=torch.bool)
    pixel[:, :, 58:] = False
    target, known = detail_target(label, pixel)
    want = official_detail_target(label)
    assert not known[label == 255].any() and not known[~pixel].any()
    near = F.max_pool2d(((label == 255) | ~pixel).float(), 7, 1, 3) > 0
    assert known[~near].all()
    inner = known.clone()
    inner[:, [0, 1, -2, -1]] = False
    inner[:, :, [0, 1, -2, -1]] = False
    assert torch.equal(target[inner], want[inner])
    assert not detail_target(torch.full((1, 16, 16), 3), torch.ones(1, 16, 16, dtype=torch.bool))[0].any()


def test_entropy_and_its_penalty_equal_the_definition() -> None:
    output = random_output(classes=19)
    p = output.logits.detach().double().softmax(1).numpy()
    e = -(p * np.log(p)).sum(1) / np.log(19)
    np.testing.assert_allclose(entropy(output.logits).detach().numpy(), e, atol=1e-6)
    pixel = torch.ones(2, 32, 48, dtype=torch.bool)
    pixel[0, :, 24:] = False  # three of six columns of cells
    want = (((e[0, :, :3] ** 2 + 1e-8) ** 2).mean() + ((e[1] ** 2 + 1e-8) ** 2).mean()) / 2
    assert robust_entropy(output, pixel).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(16, 24), (13, 11), (3, 5)])
def test_bilinear_equals_torch_forwards_and_backwards(size: tuple[int, int], align: bool) -> None:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = bilinear(x, size, align), F.interpolate(x, size, mode="bilinear", align_corners=align)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, g)[0] for y in (ours, theirs)))
