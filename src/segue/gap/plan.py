"""What a comparison would cost, said before anything is counted."""

from __future__ import annotations

from collections.abc import Iterator

from segue.gap.between import ImageSet, Kind
from segue.gap.classes import TABLES, planned_bytes, require_model
from segue.gap.networks import Extractor

MIB = 2**20


def planned(
    extractor: Extractor,
    a: ImageSet,
    b: ImageSet,
    kind: Kind,
    bins: int,
    by_class: Extractor | None,
    class_bins: int,
) -> Iterator[str]:
    """Lines on images, layers, forward passes and bytes; one image goes through the network. ``by_class``: its layers.

    Memory is that of fingerprints: A with its two halves and what they are compared by, whatever the number of images.
    """
    images = [len(a.indices), len(b.indices)]
    neurons = extractor.neurons(a.dataset.read_image(a.indices[0]), a.size)
    total = sum(neurons.values())
    passes = (2 if kind == "emd" else 1) * images[0] + images[1]
    size = {
        "emd": planned_bytes(total, 1, bins),
        "nfd": TABLES * 2 * 8 * total,
        "fd": TABLES * 8 * sum(n * n + n for n in neurons.values()),
    }[kind]
    yield f"{extractor.identity}: {len(neurons)} layers, {total} neurons"
    yield f"A {images[0]} images, B {images[1]} images: {passes} images through the network"
    yield f"fingerprints: {size} bytes ({size / MIB:.1f} MiB)" + (f", {bins} bins" if kind == "emd" else "")
    if by_class is None:
        return
    own = sum(neurons[name] for name in by_class.probe.names)
    classes = len(require_model(by_class)[1])
    size = planned_bytes(own, classes, class_bins)
    yield (
        f"by class: {size} bytes ({size / MIB:.1f} MiB), {classes} classes, {own} neurons of "
        f"{', '.join(by_class.probe.names)}, {class_bins} bins; {2 * images[0] + images[1]} more images"
    )
