"""Images of a data set, or of a plain folder of pictures, in batches for a network, read a few ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from segue.config import DatasetConfig
from segue.data.catalog import FILE, catalog_names
from segue.data.dataset import Dataset, open_dataset
from segue.data.images import read_rgb
from segue.data.reference import parse, splits_of
from segue.gap.errors import GapError
from segue.gap.networks import Extractor, Size
from segue.labels import U8, LabelSpace
from segue.predict.inputs import IMAGES, find_images
from segue.scoring.reading import ahead

LABELS = frozenset(("gtfine", "gtcoarse", "labels", "label", "gt", "semantic", "annotations", "masks"))
NO_CLASSES = LabelSpace("pictures", ("anything",), ((0, 0, 0),), (0,))
Progress = Callable[[int, int], None]


class Pictures(Dataset):
    """A folder with all below it, one image, or a glob: no labels, ids are paths."""

    def __init__(self, source: str) -> None:
        """``UserError`` when there is no image, ``GapError`` when folders of labels are among them."""
        self._paths = find_images(Path(source).expanduser())
        for name in self._paths:
            if labels := LABELS.intersection(name.lower().split("/")[:-1]):
                raise GapError(
                    f"{source} holds labels beside images (folder {min(labels)}): name the folder of its images, or "
                    f"the data set with its split and root"
                )
        super().__init__(source, NO_CLASSES, list(self._paths), None)

    def describe(self, index: int) -> str:
        """The image's file."""
        return str(self._paths[self.ids[index]])

    def _image(self, index: int) -> U8:
        return read_rgb(self._paths[self.ids[index]])


def open_images(text: str, root: Path | None = None) -> Dataset:
    """The images that ``NAME[:SPLIT]`` means (split default: train, or the first there is), or a plain folder of them.

    A folder without a ``dataset.yaml``, an image or a glob is taken as it is; a name of the catalog is a data set.
    """
    name, split = parse(text)
    if not split and root is None and _plain(name):
        return Pictures(name)
    declared = splits_of(name, root)
    chosen = split or ("train" if "train" in declared or not declared else declared[0])
    return open_dataset(name, DatasetConfig(dataset=name, root=root), chosen, None)


def _plain(name: str) -> bool:
    path = Path(name).expanduser()
    if name in catalog_names():
        return False
    if path.is_dir():
        return not (path / FILE).is_file()
    return path.suffix.lower() in IMAGES or any(c in name for c in "*?[")


def images_of(
    dataset: Dataset,
    extractor: Extractor,
    size: Size | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
    indices: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Batches (N,3,h,w) float 0..1 of a data set's images in its order, for ``extractor.probe``.

    ``indices``: these instead of all. A batch ends early where the next image has another size.
    ``progress(done, total)`` is called after each batch.
    """
    chosen = range(len(dataset)) if indices is None else indices
    done = 0
    for pictures in _batches(ahead(dataset.read_image, chosen), extractor, size, batch_size):
        yield extractor.batch(pictures, size)
        done += len(pictures)
        if progress is not None:
            progress(done, len(chosen))


def _batches(images: Iterator[U8], extractor: Extractor, size: Size | None, most: int) -> Iterator[list[U8]]:
    waiting: list[U8] = []
    for image in images:
        if waiting and (len(waiting) == most or not extractor.fits(waiting[0], image, size)):
            yield waiting
            waiting = []
        waiting.append(image)
    if waiting:
        yield waiting
