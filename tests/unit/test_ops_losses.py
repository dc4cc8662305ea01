"""What no loss may do: become NaN, depend on how a batch is split, or accept a wrong denominator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from segue.models.base import Head, Output
from segue.ops.entropy import robust_entropy
from segue.ops.losses import CriterionConfig, segmentation

NAMES = ("cross_entropy", "focal", "ohem")


def make(n: int = 4, seed: int = 0) -> tuple[Output, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, 4, 4, 6, generator=g) * 3).requires_grad_()
    edge = torch.randn(n, 1, 4, 6, generator=g).requires_grad_()
    heads = (Head("edge", edge, target="boundary"), Head("crop", logits * 1.5, window=(8, 8, 16, 32)))
    output = Output(logits, torch.empty(0), heads=heads, size=(27, 43), padded=(32, 48), num_classes=4)
    label = torch.randint(0, 4, (n, 27, 43), generator=g)
    label[torch.rand(n, 27, 43, generator=g) < 0.3] = 255
    label[:, :10, :10] = 1
    pixel = torch.ones(n, 27, 43, dtype=torch.bool)
    pixel[0, :, 30:] = False
    return output, label, pixel, torch.rand(n, 27, 43, generator=g)


def part(output: Output, at: slice) -> Output:
    heads = tuple(replace(h, logits=h.logits[at]) for h in output.heads)
    return replace(output, logits=output.logits[at], heads=heads)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given_labels", [True, False])
def test_loss_does_not_depend_on_the_split(name: str, given_labels: bool) -> None:
    output, label, pixel, weight = make()
    criterion = CriterionConfig(name=name)
    labelled = ((label != 255) & pixel).sum()

    def loss(at: slice, parts: int) -> Tensor:
        denominator = labelled / parts if given_labels else "pixels"
        return segmentation(
            part(output, at), label[at], weight[at], criterion, pixel=pixel[at], denominator=denominator
        )

    whole = loss(slice(None), 1)
    split = torch.stack([loss(slice(i, i + 1), 4) for i in range(4)]).mean()
    torch.testing.assert_close(split, whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("denominator", [torch.tensor(0.0), "pixels"], ids=["label_count", "pixels"])
@pytest.mark.parametrize("picture", [True, False])
def test_nothing_labelled_is_zero_with_zero_gradient(name: str, denominator: Tensor | str, picture: bool) -> None:
    output, label, pixel, weight = make()
    label = torch.full_like(label, 255) if picture else label
    pixel = pixel if picture else torch.zeros_like(pixel)
    loss = segmentation(output, label, weight, CriterionConfig(name=name), pixel=pixel, denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    for tensor in (output.logits, output.heads[0].logits):
        assert tensor.grad is not None and not tensor.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_picture_or_has_no_weight_changes_nothing(name: str) -> None:
    output, label, pixel, weight = make()
    other, weight = label.clone(), weight.clone()
    other[~pixel] = 2
    weight[:, 20:] = 0
    got = [
        segmentation(output, x, weight, CriterionConfig(name=name), pixel=pixel, denominator=torch.tensor(100.0))
        for x in (label.masked_fill(~pixel, 255), other)
    ]
    torch.testing.assert_close(*got)
    if name == "ohem":
        output = replace(output, heads=())
        rest = label.clone()
        rest[:, 20:] = 3
        got = [
            segmentation(output, x, weight, CriterionConfig(name=name), pixel=pixel, denominator="pixels")
            for x in (label, rest)
        ]
        torch.testing.assert_close(*got)


def test_ohem_with_few_labelled_pixels_is_their_mean() -> None:
    output, label, pixel, _ = make()
    output = replace(output, heads=())
    few = torch.full_like(label, 255)
    few[:, 5, :7] = label[:, 5, :7]  # 7 pixels of 1161, fewer than a sixteenth
    got = segmentation(output, few, criterion=CriterionConfig(name="ohem"), pixel=pixel, denominator="pixels")
    want = segmentation(output, few, pixel=pixel, denominator=torch.tensor(28.0))
    torch.testing.assert_close(got, want)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from(NAMES), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([0.0, 0.3, 2.0])
)
def test_loss_and_gradient_are_finite(seed: int, name: str, scale: float, gamma: float) -> None:
    output, label, pixel, weight = make(2, seed)
    logits = (output.logits.detach() * scale).requires_grad_()
    output = replace(output, logits=logits)
    criterion = CriterionConfig(name=name, gamma=gamma)
    loss = segmentation(output, label, weight, criterion, pixel=pixel, denominator="pixels")
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()


def test_losses_are_float32_under_autocast() -> None:
    output, label, pixel, weight = make()
    want = segmentation(output, label, weight, pixel=pixel, denominator="pixels")
    with torch.autocast("cpu", torch.bfloat16):
        got = segmentation(output, label, weight, pixel=pixel, denominator="pixels")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_weight_of_an_output_is_about_its_logits_alone() -> None:
    output, label, pixel, weight = make()

    def loss(given: Output) -> Tensor:
        return segmentation(given, label, weight, pixel=pixel, denominator="pixels")

    heads = loss(output) - loss(replace(output, heads=()))
    torch.testing.assert_close(loss(replace(output, weight=0.3)), 0.3 * loss(replace(output, heads=())) + heads)


def test_wrong_arguments_are_named() -> None:
    output, label, pixel, weight = make()
    with pytest.raises(TypeError, match="denominator"):
        segmentation(output, label, weight, pixel=pixel)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="denominator must be one number"):
        segmentation(output, label, weight, pixel=pixel, denominator=pixel.sum((1, 2)))
    with pytest.raises(ValueError, match="label_count"):
        segmentation(output, label, weight, pixel=pixel, denominator=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight is"):
        segmentation(output, label, weight[0], pixel=pixel, denominator="pixels")
    with pytest.raises(ValueError, match="4 classes"):
        criterion = CriterionConfig(class_weights=(1, 2))
        segmentation(output, label, weight, criterion, pixel=pixel, denominator="pixels")
    with pytest.raises(ValidationError, match="label_smoothing"):
        CriterionConfig(name="focal", label_smoothing=0.1)


def test_entropy_term_ignores_padding_and_falls_as_the_network_grows_sure() -> None:
    output, _, pixel, _ = make()
    losses = [robust_entropy(replace(output, logits=output.logits.detach() * k), pixel) for k in (0.0, 1.0, 20.0)]
    assert losses[0].item() == pytest.approx(1.0, abs=1e-5) and losses[0] > losses[1] > losses[2]
    changed = output.logits.detach().clone()
    changed[0, :, :, 4:] = 0  # columns 32 and right are no picture in image 0
    torch.testing.assert_close(robust_entropy(replace(output, logits=changed), pixel), losses[1])
    assert robust_entropy(output, torch.zeros_like(pixel)).item() == 0
