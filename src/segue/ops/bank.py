"""Class instances of a labelled picture, and the bank that keeps K of them.

An instance of class c is the mean embedding of the pixels that carry label c in one image, or the embedding of one
pixel at a border between classes. DIDA (facts of its released code) fills a bank image by image with class means and
moves it by momentum every 50 iterations; that update pulls instances of absent classes to zero and makes all of one
class alike, so ours updates only what is present, and :func:`replace_oldest` keeps instances apart.

Nothing here loops over pixels or instances, and nothing waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.labels import IGNORE
from segue.ops.picture import at_least_one
from segue.ops.precision import full
from segue.ops.upsampling import Upsampling


class Bank(NamedTuple):
    """K class instances: ``vectors`` (K,D) and their classes ``labels`` (K,) int64; no slot may be empty in a loss."""

    vectors: Tensor
    labels: Tensor


def class_means(
    embedding: Tensor, label: Tensor, num_classes: int, align_corners: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean of the upsampled embedding over the pixels of each class: means (N,C,D), pixels (N,C); 0 where absent.

    ``embedding`` (N,D,h,w), ``label`` (N,H,W) int64; ids outside 0..C-1 are left out. With 1_c the mask of class c and
    n_c its pixels, the mean of U(E) is (U^T 1_c)^T E / n_c, U bilinear upsampling: masks shrink, embeddings stay small.
    """
    size = (label.shape[-2], label.shape[-1])
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = full(embedding)
        cells, weights = Upsampling(embedding, size, align_corners).footprint()
        number, weight = embedding.shape[-2] * embedding.shape[-1], weights.flatten()
        means, pixels = [], []
        for e, one in zip(embedding.flatten(2), label, strict=True):
            ids = one.clamp(-1, num_classes).add_(1)  # the first row and the last are thrown away
            share = e.new_zeros((num_classes + 2) * number)
            share.scatter_add_(0, (cells + ids * number).flatten(), weight)
            count = torch.zeros(num_classes + 2, dtype=torch.int64, device=label.device)
            count = count.scatter_add_(0, ids.flatten(), torch.ones_like(ids).flatten())[1:-1]
            means.append(share.view(-1, number)[1:-1] @ e.t() / at_least_one(count).unsqueeze(1))
            pixels.append(count)
    return torch.stack(means), torch.stack(pixels)


def boundary_pixels(label: Tensor, num_classes: int, distinct: int = 2) -> Tensor:
    """Labelled pixels with at least ``distinct`` classes in their 3x3 neighbourhood, (N,H,W) int64 to (N,H,W) bool.

    Two classes in DIDA's code, which counts on flattened rows and so wraps at their ends; we do not. Ids outside
    0..C-1 are no class.
    """
    found = torch.zeros_like(label)
    for c in range(num_classes):  # one map at a time: num_classes of them would be the largest tensor of the step
        found += F.max_pool2d((label == c).float(), 3, stride=1, padding=1).long()
    return (found >= distinct) & (label >= 0) & (label < num_classes)


def one_boundary_pixel(label: Tensor, num_classes: int, noise: Tensor, distinct: int = 2) -> Tensor:
    """The label at one random boundary pixel of each class and image, 255 elsewhere, (N,H,W) to (N,H,W).

    ``noise`` (N,H,W), uniform numbers >= 0: the largest wins. :func:`class_means` of the result are the embeddings at
    those pixels (DIDA's uncalled variant A, without its trial and error).
    """
    candidates = noise.masked_fill(~boundary_pixels(label, num_classes, distinct), -1).flatten(1)
    flat = label.flatten(1)
    result = torch.full_like(flat, IGNORE)
    for c in range(num_classes):
        best = candidates.masked_fill(flat != c, -1).max(1, keepdim=True)
        result.scatter_(1, best.indices, torch.where(best.values >= 0, c, result.gather(1, best.indices)))
    return result.view_as(label)


def random_bank(size: int, dim: int, num_classes: int, generator: torch.Generator, nonnegative: bool = False) -> Bank:
    """A bank of random unit vectors, classes in turn, on the generator's device.

    ``nonnegative`` takes absolute values, as embeddings after a ReLU are and the published loss needs.
    """
    vectors = torch.randn(size, dim, generator=generator, device=generator.device)
    vectors = F.normalize(vectors.abs() if nonnegative else vectors, dim=1)
    return Bank(vectors, torch.arange(size, device=generator.device) % num_classes)


def fill(bank: Bank, used: Tensor, vectors: Tensor, labels: Tensor, present: Tensor) -> tuple[Bank, Tensor]:
    """Write the present ones of M candidates, in order, to the free slots from ``used`` on; bank and slots used since.

    ``vectors`` (M,D), ``labels`` and ``present`` (M,); ``used`` an int64 scalar tensor. What finds no slot is dropped.
    """
    slots = used + present.cumsum(0) - 1
    present = present & (slots < len(bank.labels))
    return _write(bank, slots, vectors, labels, present), used + present.sum()


def momentum_update(
    bank: Bank, means: Tensor, present: Tensor, momentum: float = 0.999, published: bool = False
) -> Bank:
    """b_i = m b_i + (1 - m) r_c for the instances of every class c that is present; ``means`` (C,D), ``present`` (C,).

    m = 0.999 in DIDA's code. ``published``: r_c is 0 for an absent class, whose instances shrink.
    """
    target = (means * present.unsqueeze(1)).to(bank.vectors)[bank.labels]
    moved = momentum * bank.vectors + (1 - momentum) * target
    if not published:
        moved = torch.where(present[bank.labels].unsqueeze(1), moved, bank.vectors)
    return bank._replace(vectors=moved)


def replace_oldest(bank: Bank, turn: Tensor, means: Tensor, present: Tensor) -> tuple[Bank, Tensor]:
    """Every present class overwrites the oldest of its own instances; bank and ``turn`` (C,), writes of each class.

    First in, first out, counted from a bank that was filled in order. Labels never change; a class without an instance
    writes nothing.
    """
    member = bank.labels.unsqueeze(1) == torch.arange(len(turn), device=turn.device)
    place = member.cumsum(0).gather(1, bank.labels.unsqueeze(1)).squeeze(1) - 1
    owned = member.sum(0)
    write = present[bank.labels] & (place == (turn % owned.clamp(min=1))[bank.labels])
    vectors = torch.where(write.unsqueeze(1), means.to(bank.vectors)[bank.labels], bank.vectors)
    return bank._replace(vectors=vectors), turn + present


def replace_balanced(
    bank: Bank, pointer: Tensor, means: Tensor, present: Tensor, order: Tensor, stride: int = 5
) -> tuple[Bank, Tensor]:
    """Overwrite slots from ``pointer`` on by classes that own too few; bank and pointer, which wraps at K.

    A class owns too few with less than K/C - 1 slots (DIDA's uncalled rule, stride 5). If any present class does, only
    those write; else the first ``stride`` present classes of ``order`` (C,), rarest first. Labels change with the
    slots. In DIDA's code a class that is never present blocks all others for ever; here it does not.
    """
    number = len(order)
    owned = (bank.labels.unsqueeze(1) == torch.arange(number, device=order.device)).sum(0)
    short = present & (owned < len(bank.labels) / number - 1)
    candidate = torch.where(short.any(), short, present)[order]
    candidate &= short.any() | (candidate.cumsum(0) <= stride)
    slots = (pointer + candidate.cumsum(0) - 1) % len(bank.labels)
    pointer = (pointer + candidate.sum()) % len(bank.labels)
    return _write(bank, slots, means[order], order, candidate), pointer


def _write(bank: Bank, slots: Tensor, vectors: Tensor, labels: Tensor, present: Tensor) -> Bank:
    # One slot more takes what is not to be written: no boolean index, so no wait for the device.
    slots = slots.masked_fill(~present, len(bank.labels))
    new_vectors = F.pad(bank.vectors, (0, 0, 0, 1)).index_copy(0, slots, vectors.to(bank.vectors))
    new_labels = F.pad(bank.labels, (0, 1)).index_copy(0, slots, labels)
    return Bank(new_vectors[:-1], new_labels[:-1])
