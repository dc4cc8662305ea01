"""Class masks: how many classes, which never, and whose randomness."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.ops.keys import generator
from segue.ops.mixing import class_mask, confidence_weight, mix

label_lists = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 7, 18, 254, 255]), min_size=12, max_size=12), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(label_lists, st.integers(0, 1000), st.booleans())
def test_half_of_the_classes_and_whole_classes(rows: list[list[int]], seed: int, with_pixel: bool) -> None:
    label = torch.tensor(rows).view(len(rows), 3, 4)
    pixel = torch.ones_like(label, dtype=torch.bool)
    pixel[:, 0] = not with_pixel
    mask = class_mask(label, [generator(seed, i) for i in range(len(rows))], pixel if with_pixel else None)
    for one, real, chosen in zip(label, pixel, mask, strict=True):
        present = set(one[real].tolist()) - {255}
        pasted = set(one[chosen].tolist())
        assert len(pasted) == (len(present) + 1) // 2 and pasted <= present
        assert torch.equal(chosen, real & torch.isin(one, torch.tensor(sorted(pasted), dtype=torch.int64)))


def test_every_class_is_equally_likely_and_an_image_owns_its_draw() -> None:
    label = torch.tensor([[0, 3, 9, 14, 255]]).view(1, 1, 5).repeat(600, 1, 1)
    mask = class_mask(label, [generator("test", i) for i in range(600)])
    counts = Counter(label[mask].tolist())
    assert sum(counts.values()) == 1200 and min(counts.values()) > 250
    alone = class_mask(label[41:42], [generator("test", 41)])
    assert torch.equal(alone, mask[41:42])


def test_published_form_counts_the_batch_and_the_ignore_label() -> None:
    label = torch.tensor([[0, 0, 255, 255], [1, 2, 2, 2]]).view(2, 1, 4)
    seen = set()
    for i in range(40):
        mask = class_mask(label, [generator(i, 0), generator(i, 1)], published=True)
        assert len(set(label[mask].tolist())) <= 4
        seen |= set(label[mask].tolist())
        assert len(set(label[0][mask[0]].tolist())) <= 2  # of the two chosen of {0, 1, 2, 255} any number may be here
    assert seen == {0, 1, 2, 255}


def test_mix_images_and_maps() -> None:
    a, b = torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    mask = torch.rand(2, 4, 5, generator=generator(0)) > 0.5
    assert torch.equal(mix(a, b, mask), mask.float().unsqueeze(1).expand(2, 3, 4, 5))
    assert torch.equal(mix(a[:, 0] > 0, b[:, 0] > 0, mask), mask)
    with pytest.raises(ValueError, match="equal"):
        mix(a, b[:, 0], mask)
    with pytest.raises(ValueError, match="generators"):
        class_mask(torch.zeros(2, 1, 1, dtype=torch.int64), [generator(0)])


def test_confidence_weight_is_the_share_of_sure_pixels() -> None:
    prob = torch.full((2, 4, 10), 0.9)
    prob[0, 0] = 0.968  # exactly at the threshold counts
    prob[1, :, :5] = 0.99
    torch.testing.assert_close(confidence_weight(prob).flatten(), torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(confidence_weight(prob, per="batch").flatten(), torch.tensor([0.375, 0.375]))
    pixel = torch.ones_like(prob, dtype=torch.bool)
    pixel[1, :, 5:] = False
    pixel[0] = False
    torch.testing.assert_close(confidence_weight(prob, pixel=pixel).flatten(), torch.tensor([0.0, 1.0]))
    assert (prob * confidence_weight(prob)).shape == prob.shape
