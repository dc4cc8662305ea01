"""The gap between two sets of images for a network, from pictures to one number and its floor.

A is the reference: its images say once in which range every neuron is counted, B is counted in the same ranges. The
floor is the distance between two halves of A, every second image each: what the same measurement gives where nothing
has changed. Halves have half the images, so the floor is on the safe side, and one of near-equal frames of a video is
too low: take every n-th frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from segue.data.copies import spread
from segue.data.dataset import Dataset
from segue.gap.distances import Distance, emd, frechet_distance, normal_distance
from segue.gap.errors import GapError
from segue.gap.fingerprint import BINS, Fingerprint, Gaussian, Histogram, count, gaussian
from segue.gap.networks import Extractor, Size
from segue.gap.ranges import Ranges, measure
from segue.gap.reading import Progress, images_of

Kind = Literal["emd", "nfd", "fd"]


@dataclass(frozen=True)
class ImageSet:
    """Images of a data set as networks are to take them; ``limit``: so many at most, evenly spaced.

    ``progress`` makes what one pass over the images reports to.
    """

    dataset: Dataset
    size: Size | None = None
    batch_size: int = 8
    limit: int | None = None
    progress: Callable[[], Progress] | None = None

    @property
    def indices(self) -> list[int]:
        """Which images."""
        return spread(range(len(self.dataset)), self.limit or len(self.dataset))

    def batches(self, extractor: Extractor, indices: list[int] | None = None) -> Iterator[Tensor]:
        """See :func:`segue.gap.reading.images_of`; ``indices``: some of the images."""
        chosen = self.indices if indices is None else indices
        progress = self.progress and self.progress()
        return images_of(self.dataset, extractor, self.size, self.batch_size, progress, chosen)


@dataclass(frozen=True)
class Reference:
    """A fingerprint, and the distance between the two halves of its images where there are two."""

    fingerprint: Fingerprint
    floor: Distance | None = None


@dataclass(frozen=True)
class Gap:
    """``distance`` from A to B and the ``floor`` inside A, None where A has one image or is a stored fingerprint.

    An ``emd`` is a number of ``bins``. ``a`` and ``b`` are the fingerprints.
    """

    kind: Kind
    distance: Distance
    floor: Distance | None
    a: Fingerprint
    b: Fingerprint

    @property
    def bins(self) -> int | None:
        """Of histograms."""
        return self.a.bins if isinstance(self.a, Histogram) else None

    @property
    def share(self) -> float | None:
        """An ``emd`` as a share of the neurons' ranges: comparable between numbers of bins."""
        return self.distance.number / self.bins if self.bins else None


def fingerprint_of(
    extractor: Extractor,
    images: ImageSet,
    kind: Kind = "emd",
    *,
    ranges: Ranges | None = None,
    bins: int = BINS,
    indices: list[int] | None = None,
) -> Fingerprint:
    """The fingerprint that a distance needs: a histogram (in ``ranges``, default its own), or a normal form."""
    batches = images.batches(extractor, indices)
    if kind != "emd":
        return gaussian(extractor.probe, batches, full=kind == "fd")
    if ranges is None:
        ranges = measure(extractor.probe, images.batches(extractor, indices))
    return count(extractor.probe, ranges, batches, bins)


def reference_of(
    extractor: Extractor, images: ImageSet, kind: Kind = "emd", *, ranges: Ranges | None = None, bins: int = BINS
) -> Reference:
    """The fingerprint of A with its floor; all images say the ranges unless these are given."""
    if kind == "emd" and ranges is None:
        ranges = measure(extractor.probe, images.batches(extractor))
    chosen = images.indices
    first, *rest = [
        fingerprint_of(extractor, images, kind, ranges=ranges, bins=bins, indices=half)
        for half in (chosen[::2], chosen[1::2])
        if half
    ]
    if not rest:
        return Reference(first)
    return Reference(merged(first, rest[0]), between(first, rest[0], kind))


def merged(a: Fingerprint, b: Fingerprint) -> Fingerprint:
    """Both together; ``GapError`` for different forms."""
    if isinstance(a, Histogram) and isinstance(b, Histogram):
        return a.merge(b)
    if isinstance(a, Gaussian) and isinstance(b, Gaussian):
        return a.merge(b)
    raise GapError("a histogram and a normal form cannot be put together: make both in one form")


def between(a: Fingerprint, b: Fingerprint, kind: Kind) -> Distance:
    """The distance of two fingerprints; ``GapError`` for forms that do not have it."""
    for given in (a, b):
        _check_form(given, kind)
    if isinstance(a, Histogram) and isinstance(b, Histogram):
        return emd(a, b)
    assert isinstance(a, Gaussian) and isinstance(b, Gaussian)
    return normal_distance(a, b) if kind == "nfd" else frechet_distance(a, b)


def distance_of(
    extractor: Extractor | None,
    a: ImageSet | Fingerprint,
    b: ImageSet | Fingerprint,
    kind: Kind = "emd",
    *,
    bins: int = BINS,
) -> Gap:
    """The gap from A to B, each given as images or as a fingerprint; of a stored histogram the other takes the ranges.

    ``GapError`` for fingerprints of another network or form, a stored histogram that tells no ranges, and images
    without a network, all before an image is read.
    """
    for given, other in ((a, b), (b, a)):
        if not isinstance(given, ImageSet):
            _check_form(given, kind)
            if isinstance(other, ImageSet):
                _check_network(given, _needed(extractor))
    stored = next((x for x in (a, b) if isinstance(x, Histogram)), None)
    if stored is not None and isinstance(a if stored is b else b, ImageSet):
        if stored.ranges is None:
            raise GapError("a stored fingerprint without ranges cannot be a reference of images: count it again")
        bins = stored.bins
    ranges = stored.ranges if stored is not None else None
    if isinstance(a, ImageSet):
        reference = reference_of(_needed(extractor), a, kind, ranges=ranges, bins=bins)
    else:
        reference = Reference(a)
    first = reference.fingerprint
    if isinstance(b, ImageSet):
        own = first.ranges if isinstance(first, Histogram) else None
        second = fingerprint_of(_needed(extractor), b, kind, ranges=own, bins=bins)
    else:
        second = b
    return Gap(kind, between(first, second, kind), reference.floor, first, second)


def _check_form(given: Fingerprint, kind: Kind) -> None:
    has = {"emd"} if isinstance(given, Histogram) else {"nfd", "fd"} if given.full else {"nfd"}
    if kind not in has:
        wanted = {"emd": "histograms", "nfd": "normal forms", "fd": "normal forms with covariances"}[kind]
        raise GapError(f"{kind} compares {wanted}: choose another distance, or make the fingerprints again")


def _check_network(given: Fingerprint, extractor: Extractor) -> None:
    if given.network != extractor.identity:
        raise GapError(
            f"the stored fingerprint is of {given.network}, the network is {extractor.identity}: name the same "
            f"network, size and preparation, or store it again"
        )


def _needed(extractor: Extractor | None) -> Extractor:
    if extractor is None:
        raise GapError("images are compared by a network: name one")
    return extractor
