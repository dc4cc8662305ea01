"""Banks of class instances: their files, and how one is made from a trained model and any labelled data set.

The files are DIDA's: a folder with ``f_buffer_s.npz`` (one array ``arr_0``, float32 K×D) and ``l_buffer_s.npz``
(``arr_0``, int64 K, train ids). Nothing in them is unpickled. A bank belongs to the network that filled it: another
one's embeddings have other axes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.data.copies import spread
from segue.errors import UserError
from segue.files import replacing
from segue.labels import IGNORE, U8, LabelSpace
from segue.models.base import Output, SegModel
from segue.models.classify import evaluating, to_input
from segue.ops.bank import Bank, class_means, one_boundary_pixel

FEATURES, LABELS = "f_buffer_s.npz", "l_buffer_s.npz"
KEY = "arr_0"
MAX_BYTES = 2**30
"""Of an array: published banks have 0.5 MB, and a damaged or crafted archive can unpack to anything."""


class BankError(UserError):
    """A file that is no bank, or not one for this model."""


def read_bank(path: Path, labels: LabelSpace, dim: int) -> Bank:
    """Bank of a folder, or of its file of vectors, for embeddings of ``dim`` channels; ``BankError`` for any fault.

    Vectors are finite, none is zero; classes are train ids of ``labels``, not all of which need to occur.
    """
    features = path / FEATURES if path.is_dir() else path
    named = features.with_name(features.name.replace("f_", "l_", 1))
    if not features.is_file():
        raise BankError(f"no bank at {path}: give a folder with {FEATURES} and {LABELS}; 'segue bank' makes one")
    if named == features or not named.is_file():
        raise BankError(f"{features} holds vectors, but {named} with their classes is missing: a bank needs both")
    vectors, classes = _array(features), _array(named)
    if vectors.ndim != 2 or not len(vectors) or vectors.dtype.kind != "f":
        raise BankError(f"{features} holds {_told(vectors)}: K rows of {dim} floating-point numbers are needed")
    if classes.shape != vectors.shape[:1] or classes.dtype.kind not in "iu":
        raise BankError(f"{named} holds {_told(classes)}: {len(vectors)} whole numbers are needed, one a vector")
    if vectors.shape[1] != dim:
        raise BankError(
            f"{features} has vectors of {vectors.shape[1]} numbers, the model's embedding has {dim}: a bank belongs to "
            f"the network that filled it; 'segue bank' makes one for this model"
        )
    vectors = vectors.astype(np.float32)
    bad = ~np.isfinite(vectors).all(1) | ~vectors.any(1)
    if bad.any():
        raise BankError(f"{features}: row {int(bad.argmax())} is zero or not finite ({int(bad.sum())} such rows)")
    if int(classes.min()) < 0 or int(classes.max()) >= len(labels):
        raise BankError(
            f"{named} has classes {classes.min()} to {classes.max()}, label space {labels.name!r} has 0 to "
            f"{len(labels) - 1}: a bank holds its train ids"
        )
    return Bank(torch.from_numpy(vectors), torch.from_numpy(classes.astype(np.int64)))


def require_free(folder: Path) -> None:
    """``BankError`` when a folder has a bank already."""
    for name in (FEATURES, LABELS):
        if (folder / name).exists():
            raise BankError(f"{folder / name} exists: choose another folder, or remove it")


def write_bank(folder: Path, bank: Bank) -> None:
    """Write a bank into ``folder``; ``BankError`` when there is one."""
    require_free(folder)
    arrays = {FEATURES: bank.vectors.float(), LABELS: bank.labels}
    for name, array in arrays.items():
        with replacing(folder / name) as temporary, temporary.open("wb") as file:
            np.savez(file, array.cpu().numpy())


def absent(bank: Bank, labels: LabelSpace) -> list[str]:
    """Names of the classes that a bank has no instance of."""
    here = set(bank.labels.tolist())
    return [name for c, name in enumerate(labels.classes) if c not in here]


def instances(
    embedding: Tensor,
    label: Tensor,
    output: Output,
    num_classes: int,
    draws: Sequence[torch.Generator] | None = None,
    distinct: int = 2,
) -> tuple[Tensor, Tensor]:
    """One instance of each class in each image: vectors (N,C,D), and which of them there are (N,C).

    ``embedding`` (N,D,h,w) of ``output``; ``label`` (N,H,W) of any resolution. The mean embedding of a class or, with
    ``draws``, a generator an image, that of one random pixel with ``distinct`` classes around it.
    """
    label = on_padded(label, output, IGNORE)
    if draws is not None:
        noise = torch.stack([torch.rand(label.shape[1:], generator=g) for g in draws]).to(label.device)
        label = one_boundary_pixel(label, num_classes, noise, distinct)
    vectors, pixels = class_means(embedding, label, num_classes, output.align_corners)
    return vectors, pixels > 0


def on_padded(maps: Tensor, output: Output, value: float) -> Tensor:
    """Maps (…,H,W) of an image, of any resolution, with the margin that the network padded on, which has ``value``."""
    height, width = maps.shape[-2:]
    below = round(output.padded[0] * height / output.size[0]) - height
    right = round(output.padded[1] * width / output.size[1]) - width
    return F.pad(maps, (0, right, 0, below), value=value) if below or right else maps


@torch.inference_mode()
def make_bank(model: SegModel, samples: Iterable[tuple[U8, U8]], num_classes: int, size: int) -> Bank:
    """Class-balanced bank of ``size`` class means in the embeddings of ``model``, in eval mode, sorted by class.

    ``samples``: images (H,W,3) RGB and labels, train ids, of any resolution. Every class gets the same number, one that
    has too few leaves its rest to the others; a class's instances are spread over the images. ``BankError`` when all
    instances together are too few.
    """
    found: list[list[Tensor]] = [[] for _ in range(num_classes)]
    number = 0
    with evaluating(model):
        for image, label in samples:
            output = model(to_input([image], model.mean.device))
            truth = torch.from_numpy(label).to(model.mean.device, torch.int64).unsqueeze(0)
            vectors, present = instances(output.embedding, truth, output, num_classes)
            for c in present[0].nonzero().flatten().tolist():
                found[c].append(vectors[0, c])
            number += 1
    shares = _shares([len(own) for own in found], size)
    if sum(shares) < size:
        raise BankError(
            f"{number} images have {sum(shares)} instances of classes, the bank needs {size}: make it smaller, or give "
            f"more images"
        )
    chosen = [(vector, c) for c, own in enumerate(found) for vector in spread(own, shares[c])]
    vectors = torch.stack([vector for vector, _ in chosen])
    return Bank(vectors.float(), torch.tensor([c for _, c in chosen], device=vectors.device))


def _shares(available: Sequence[int], size: int) -> list[int]:
    """How many of each class, one after the other in rounds, those with the fewest first."""
    shares = [0] * len(available)
    order = sorted(range(len(available)), key=lambda c: available[c])
    while sum(shares) < min(size, sum(available)):
        for c in order:
            if shares[c] < available[c] and sum(shares) < size:
                shares[c] += 1
    return shares


def _array(path: Path) -> npt.NDArray[np.generic]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            large = KEY + ".npy" in names and archive.getinfo(KEY + ".npy").file_size > MAX_BYTES
        if names != [KEY + ".npy"] or large:
            what = "more than 1 GB" if large else ", ".join(names) or "nothing"
            raise BankError(f"{path} holds {what}: one array {KEY!r} is needed")
        with np.load(path, allow_pickle=False) as content:
            array: npt.NDArray[np.generic] = content[KEY]
            return array
    except BankError:
        raise
    except Exception as error:  # a damaged archive raises many kinds
        reason = str(error).partition("\n")[0]
        raise BankError(f"cannot read bank {path}: {reason or type(error).__name__}") from error


def _told(array: npt.NDArray[np.generic]) -> str:
    return f"{array.dtype} numbers in the shape {'x'.join(map(str, array.shape)) or 'of one'}"
