"""HRDA: the published facts, its formula against an independent one, and its windows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.wrapped import CLASSES, image, make, register
from segue.methods.teacher import Teacher
from segue.models.base import MODELS
from segue.models.hrda import HRDA
from segue.ops.losses import segmentation


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def set_attention(model: HRDA, value: float) -> None:
    assert model.attention is not None
    nn.init.zeros_(model.attention.classifier.weight)
    nn.init.constant_(model.attention.classifier.bias, value)  # type: ignore[arg-type]


# The oracle: sums over pixels, with interpolation weights written down.


def weights(old: int, new: int) -> Tensor:
    out = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        place = min(max((row + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = int(place)
        out[row, low] += 1 - (place - low)
        out[row, min(low + 1, old - 1)] += place - low
    return out


def resized(x: Tensor, height: int, width: int) -> Tensor:
    return torch.einsum("ih,nchw,jw->ncij", weights(x.shape[2], height), x, weights(x.shape[3], width))


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight * -log p over labelled pixels, of each image."""
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    known = label != 255
    taken = p.gather(1, label.masked_fill(~known, 0).unsqueeze(1)).squeeze(1)
    return (-taken.log() * weight * known).sum((1, 2))


@pytest.mark.parametrize("attention", ["classwise", "single", "fixed"])
def test_loss_is_that_of_the_formula(attention: str) -> None:
    model = make(attention=attention, window_px=(32, 48), detail_weight=0.2).double().train()
    picture = image(2, 3, 75, 130).double()  # padded to 80x144
    label = torch.randint(0, CLASSES, (2, 75, 130), generator=torch.Generator().manual_seed(2))
    label[:, 40:50, :60] = 255
    pixel = torch.ones(2, 75, 130, dtype=torch.bool)
    pixel[1, :, 100:] = False
    weight = image(2, 75, 130, seed=3).double()
    torch.manual_seed(26)
    output = model(picture)
    top, left, height, width = window = next(h.window for h in output.heads if h.name == "window")
    assert (height, width) == (32, 48) and top + height > 75 and left > 0, "reaches into the padding"

    x = F.pad((picture - model.mean) / model.std, (0, 14, 0, 5))
    context_image = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    context = model.base.decode(context_image)
    detail = model.base.decode(x[..., top : top + 32, left : left + 48]).logits
    share = torch.full((2, 1, 10, 18), 0.5, dtype=torch.float64)
    if attention != "fixed":
        gates = model.attention.classifier(model.attention.decoder(context.stages))
        share = 1 / (1 + (-gates).exp())
    assert share.shape[1] == {"classwise": CLASSES, "single": 1, "fixed": 1}[attention]
    mask, inserted = torch.zeros(10, 18, dtype=torch.float64), torch.zeros(2, CLASSES, 20, 36, dtype=torch.float64)
    mask[top // 8 : top // 8 + 4, left // 8 : left // 8 + 6] = 1
    inserted[..., top // 4 : top // 4 + 8, left // 4 : left // 4 + 12] = detail
    share = share * mask
    fused = resized((1 - share) * context.logits, 20, 36) + resized(share, 20, 36) * inserted
    torch.testing.assert_close(output.logits, fused, rtol=0, atol=1e-12)

    whole = cross_entropy(resized(fused, 80, 144)[..., :75, :130], label, weight * pixel)
    inside = (slice(None), slice(top, min(top + 32, 75)), slice(left, min(left + 48, 130)))
    rows, columns = label[inside].shape[1:]
    small = resized(detail, 32, 48)[..., :rows, :columns]
    cropped = cross_entropy(small, label[inside], (weight * pixel)[inside])
    side = cross_entropy(resized(context.heads[0].logits, 80, 144)[..., :75, :130], label, weight * pixel)
    share_px, count = rows * columns / (75 * 130), torch.tensor(1000.0, dtype=torch.float64)
    wanted = (0.8 * whole + 0.4 * side).sum() / 1000 + 0.2 * cropped.sum() / (1000 * share_px)
    given = segmentation(output, label, weight, pixel=pixel, denominator=count)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)
    pixels = [p.sum((1, 2)) for p in (pixel, pixel[inside])]
    wanted = ((0.8 * whole + 0.4 * side) / pixels[0] + 0.2 * cropped / pixels[1].clamp(min=1)).mean()
    given = segmentation(output, label, weight, pixel=pixel, denominator="pixels")
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (given, wanted))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert window == (top, left, 32, 48)


def test_attention_0_is_the_context_and_1_the_detail() -> None:
    model = make()
    picture = image(1, 3, 128, 192)
    x = (picture - model.mean) / model.std
    context = model.base.decode(F.avg_pool2d(x, 2)).logits
    for mode in (True, False):
        model.train(mode)
        set_attention(model, -1000.0)
        twice = F.interpolate(context, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(model(picture).logits, twice)
    set_attention(model, 1000.0)
    output = model.train()(picture)
    top, left, height, width = (px // 4 for px in output.heads[0].window)
    # One cell of the detail from the window's border on, where the mask's own interpolation has ended.
    inner = (..., slice(top + 1, top + height - 1), slice(left + 1, left + width - 1))
    torch.testing.assert_close(output.logits[inner], output.heads[0].logits[..., 1:-1, 1:-1])
    far = output.logits.clone()
    far[..., max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1] = twice[
        ..., max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1
    ]
    torch.testing.assert_close(far, twice)
    # Without a norm a window is scored as the whole image is, but for the border of the 3x3 convolution.
    whole = model.base.decode(x[..., :64, :64]).logits
    torch.testing.assert_close(model.eval()(picture).logits[..., :8, :8], whole[..., :8, :8])


@pytest.mark.parametrize(
    ("size", "windows", "passes"), [((1024, 1024), 9, [9]), ((1024, 2048), 21, [9, 9, 3]), ((512, 512), 1, [1])]
)
def test_each_window_is_scored_once(size: tuple[int, int], windows: int, passes: list[int]) -> None:
    model = make(window_px=(512, 512)).eval()
    with torch.no_grad():
        output = model(torch.zeros(2, 3, 1, 1).expand(2, 3, *size))
    context, *details = model.base.seen[-1 - len(passes) :]
    assert context == (2, 3, size[0] // 2, size[1] // 2)
    assert details == [(2 * n, 3, 512, 512) for n in passes]
    assert sum(passes) == windows
    assert output.logits.shape == (2, CLASSES, size[0] // 4, size[1] // 4)


def test_overlapping_windows_are_averages() -> None:
    model = make().eval()
    set_attention(model, 1000.0)
    x = torch.randn(2, 3, 128, 112, generator=torch.Generator().manual_seed(1))
    total, seen = torch.zeros(2, CLASSES, 32, 28), torch.zeros(32, 28)
    for top in (0, 32, 64):
        for left in (0, 32, 48):
            place = (..., slice(top // 4, top // 4 + 16), slice(left // 4, left // 4 + 16))
            total[place] += model.base.decode(x[..., top : top + 64, left : left + 64]).logits
            seen[place[1:]] += 1
    torch.testing.assert_close(model.decode(x).logits, total / seen)
    for number in (1, 2, 100):
        other = make(windows_per_pass=number).eval()
        set_attention(other, 1000.0)
        torch.testing.assert_close(other.decode(x).logits, total / seen)


def windows_of(model: HRDA, number: int, *size: int) -> list[tuple[int, ...]]:
    found = []
    for _ in range(number):
        output = model(torch.zeros(1, 3, *size))
        found.append(next(h.window for h in output.heads if h.window))
    return found


def test_windows_reach_the_last_place_and_come_from_the_seed() -> None:
    model = make().train()
    torch.manual_seed(5)
    found = windows_of(model, 200, 96, 160)
    tops, lefts = Counter(w[0] for w in found), Counter(w[1] for w in found)
    assert sorted(tops) == list(range(0, 33, 8)) and sorted(lefts) == list(range(0, 97, 8))
    assert min(tops.values()) > 20 and min(lefts.values()) > 5, "all about equally often"
    assert {w[2:] for w in found} == {(64, 64)}
    other = make().train()
    torch.manual_seed(5)
    between = []
    for _ in range(20):
        between += windows_of(model, 1, 96, 160)
        state = torch.get_rng_state()
        windows_of(other, 1, 128, 64)  # another network, with draws of its own
        other.eval()(torch.zeros(1, 3, 96, 160))
        other.train()
        torch.set_rng_state(state)
    assert between == found[:20]


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (50, 200)])
def test_a_window_is_never_larger_than_the_image(size: tuple[int, int]) -> None:
    model = make(window_px=(512, 512)).train()
    output = model(image(1, 3, *size))
    assert output.heads[0].window == (0, 0, *output.padded)
    assert output.weight == pytest.approx(0.9) and output.heads[0].weight == 0.1
    label = torch.zeros(1, *size, dtype=torch.int64)
    assert segmentation(output, label, pixel=label == 0, denominator="pixels").isfinite()
    assert model.eval()(image(1, 3, *size)).weight == 1.0


def test_a_window_in_the_padding_is_no_fault() -> None:
    model = make(window_px=(16, 16)).train()
    size = (33, 33)  # padded to 48: the last window shows one row and column of the picture
    label = torch.zeros(1, *size, dtype=torch.int64)
    for seed in range(20):
        torch.manual_seed(seed)
        output = model(image(1, 3, *size))
        assert segmentation(output, label, pixel=label == 0, denominator=torch.tensor(9.0)).isfinite()


@pytest.mark.parametrize("size", [(128, 192), (75, 130)])
@pytest.mark.parametrize("training", [True, False])
def test_maps_lie_where_the_image_has_them(size: tuple[int, int], training: bool) -> None:
    """A base that answers with the place: context, window and embedding agree on it."""
    model = make().double().train(training)
    set_attention(model, 0.7)
    for conv in (model.base.encoder, model.base.classifier):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    model.mean.zero_()
    model.std.fill_(1.0)
    rows = torch.arange(size[0]).double().view(1, 1, -1, 1).expand(1, 1, *size)
    columns = torch.arange(size[1]).double().view(1, 1, 1, -1).expand(1, 1, *size)
    place = torch.cat([rows, columns, rows], 1)
    output = model(place)
    certain = torch.zeros(size, dtype=torch.bool)
    certain[8 : size[0] - 24, 8 : size[1] - 24] = True  # the padding is seen beyond
    for top, left, height, width in (h.window for h in output.heads if h.window):
        # The mask is interpolated, so that cells along the window's border mix with nothing (as published).
        border = torch.zeros(size, dtype=torch.bool)
        border[max(top - 8, 0) : top + height + 8, max(left - 8, 0) : left + width + 8] = True
        border[top + 8 : top + height - 8, left + 8 : left + width - 8] = False
        certain &= ~border
        assert certain[top : top + height, left : left + width].sum() > 500
    inside = (..., certain)
    embedding = output.embedding[:, :3]
    assert embedding.shape[-2:] == (output.padded[0] // 8, output.padded[1] // 8)
    torch.testing.assert_close(output.upsample(output.logits)[inside], place[inside], atol=1e-9, rtol=0)
    torch.testing.assert_close(output.upsample(embedding)[inside], place[inside], atol=1e-9, rtol=0)
    twice = (2 * size[0], 2 * size[1])
    assert output.upsample(embedding, twice).shape[-2:] == twice


@pytest.mark.parametrize("attention", ["single", "fixed"])
def test_attention_without_classes_does_not_grow(attention: str) -> None:
    model = make(attention=attention).eval()
    picture = image(1, 3, 64, 96)
    with torch.no_grad():
        before = model(picture).logits
        model.grow_head(2, "random")
        after = model(picture).logits
    assert list(model.classifiers()) == ["base.classifier", "base.side"]
    torch.testing.assert_close(after[:, :CLASSES], before)
    assert after.shape[1] == CLASSES + 2


@pytest.mark.parametrize("norm", ["batch", "copy", "average"])
def test_a_teacher_sees_the_whole_image(norm: Any) -> None:
    student = make({"name": "bisenet", **MODELS.get("bisenet").tiny()}).train()
    teacher = Teacher(student, 0.99, norm)
    picture = image(2, 3, 90, 140)
    state = torch.get_rng_state()
    output = teacher(picture)
    assert torch.equal(torch.get_rng_state(), state), "no draw"
    assert output.heads == () and not output.logits.requires_grad and output.weight == 1.0
    assert output.upsample(output.logits).shape == (2, CLASSES, 90, 140)
    if norm == "copy":
        torch.testing.assert_close(output.logits, student.eval()(picture).logits)
        student.train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update(student, 10**6)
    mine, theirs = teacher.network.attention.classifier.bias, student.attention.classifier.bias
    torch.testing.assert_close(theirs - mine, torch.full_like(mine, 0.99))


def test_other_ratios() -> None:
    for scale, ratio in ((1.0, 1), (0.25, 4), (0.333, 3)):
        model = make(context_scale=scale, window_px=(96, 96)).train()
        assert model.multiple == 8 * ratio
        output = model(image(1, 3, 100, 200))
        assert output.logits.shape[-2:] == (output.padded[0] // 4, output.padded[1] // 4)
        assert output.embedding.shape[-2:] == tuple(side // (4 * ratio) for side in output.padded)
        assert model.eval()(image(1, 3, 100, 200)).logits.shape == output.logits.shape


def test_eval_keeps_no_full_size_map_of_every_window() -> None:
    """What a window leaves is its cells: the largest tensor is one batch of windows, not 21 maps of the image."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().nbytes() > 4:
                self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
            return out

    def largest(windows: int) -> int:
        model = make(window_px=(512, 512), windows_per_pass=windows).eval()
        picture = torch.zeros(1, 3, 1024, 2048)
        with torch.no_grad(), Largest() as seen:
            model(picture)
        return seen.elements

    assert largest(2) == 3 * 1024 * 2048, "the normalised image"
    assert largest(21) == 21 * 3 * 512 * 512
