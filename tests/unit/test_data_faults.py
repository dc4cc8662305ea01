"""Each thing that can be wrong with files gives one DataError that names it; the audit names it too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.miniatures import SIZE, own, picture, save
from segue.config import DatasetConfig, TransformConfig
from segue.data import audit, show
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.images import read_ids, read_rgb, write_image
from segue.data.loaders import Stream
from segue.labels import load_space

IMAGE, LABEL = "images/train/1.png", "labels/train/1.png"


def opened(root: Path, split: str = "train", **config: object) -> Dataset:
    return open_dataset("x", DatasetConfig(dataset=str(root), **config), split)  # type: ignore[arg-type]


def touch_all(dataset: Dataset) -> None:
    for index in range(len(dataset)):
        dataset.read_sample(index, labels=True)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def text(path: Path) -> None:
    path.write_text("<html>404</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def wrong_size(path: Path) -> None:
    save(path, np.ones((SIZE[0], SIZE[1] - 1), np.uint8))


def wrong_value(path: Path) -> None:
    save(path, np.full(SIZE, 9, np.uint8))


FAULTS: list[tuple[str, Callable[[Path], None], str, str]] = [
    (IMAGE, halve, "truncated|damaged", "unreadable"),
    (LABEL, halve, "truncated|damaged", "unreadable"),
    (IMAGE, flip_a_byte, "damaged", "unreadable"),
    (IMAGE, text, "not an image", "unreadable"),
    (IMAGE, empty, "empty", "unreadable"),
    (LABEL, wrong_size, "31x24", "mismatch"),
    (LABEL, wrong_value, "label values 9 are not in the map", "values"),
    (LABEL, Path.unlink, "no label file", "no_label"),
]


@pytest.mark.parametrize(("file", "damage", "message", "kind"), FAULTS)
def test_damage_is_named_on_reading_and_by_the_audit(
    tmp_path: Path, file: str, damage: Callable[[Path], None], message: str, kind: str
) -> None:
    root = own(tmp_path)
    touch_all(opened(root))
    damage(root / file)
    dataset = opened(root)
    with pytest.raises(DataError, match=message) as caught:
        touch_all(dataset)
    assert str(root / file) in str(caught.value)
    found = audit.check(str(root))
    assert [p.kind for p in found] == [kind]
    assert file.rsplit("/", 1)[1] in found[0].message


def test_scoring_refuses_a_label_of_another_size_but_not_a_resized_image(tmp_path: Path) -> None:
    root = own(tmp_path)
    image, label = opened(root, size=[12, 16]).read_scored(1)
    assert image.shape == (12, 16, 3) and label.shape == SIZE
    wrong_size(root / LABEL)
    for dataset in (opened(root), opened(root, size=[12, 16])):
        with pytest.raises(DataError, match=r"images/train/1\.png is 32x24 pixels, but its label .* is 31x24"):
            dataset.read_scored(1)
    yaml = root / "dataset.yaml"
    yaml.write_text(yaml.read_text().replace("ids: {", "own_size: true, ids: {"))
    image, label = opened(root).read_scored(1)
    assert image.shape[:2] == SIZE and label.shape == (24, 31)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("width", [40, 700])
def test_cut_files_never_decode(tmp_path: Path, keep: float, suffix: str, width: int) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (width // 2, width, 3), dtype=np.uint8)
    write_image(path, noise)
    assert read_rgb(path).shape == noise.shape
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"a\.(png|jpg)"):
        read_rgb(path)


def test_jpeg_with_bytes_after_the_picture_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write_image(path, picture(0))
    path.write_bytes(path.read_bytes() + b"maker note" * 50)
    assert read_rgb(path).shape == (*SIZE, 3)


def test_missing_folder_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGUE_DATA", str(tmp_path / "all"))
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "cs"))
    with pytest.raises(DataError) as caught:
        open_dataset("cityscapes", DatasetConfig(), "train")
    for place in ("cs", "all/cityscapes", "data/cityscapes", "datasets/data/cityscapes", "SEGUE_DATA", "'root'"):
        assert place in str(caught.value)
    with pytest.raises(DataError, match="root nowhere is not a folder"):
        open_dataset("cityscapes", DatasetConfig(root=Path("nowhere")), "train")


def test_root_lookup_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("SEGUE_DATA", "IFN_DIR_DATASET"):
        monkeypatch.delenv(variable, raising=False)
    own(tmp_path / "datasets/data/yard", 1)
    assert len(open_dataset("yard", DatasetConfig(), "train")) == 1
    own(tmp_path / "data/yard", 2)
    assert len(open_dataset("yard", DatasetConfig(), "train")) == 2
    own(tmp_path / "env/yard", 3)
    monkeypatch.setenv("SEGUE_DATA", str(tmp_path / "env"))
    assert len(open_dataset("yard", DatasetConfig(), "train")) == 3
    own(tmp_path / "given", 4)
    assert len(open_dataset("yard", DatasetConfig(root=tmp_path / "given"), "train")) == 4


def test_empty_split_unknown_split_and_nothing_left(tmp_path: Path) -> None:
    root = own(tmp_path)
    with pytest.raises(
        DataError, match=r"split 'val' is empty, no image matches 'images/val/\{key\}.png'.*dataset.yaml"
    ):
        opened(root, "val")
    with pytest.raises(DataError, match=r"no split 'trian' .did you mean 'train'"):
        opened(root, "trian")
    with pytest.raises(DataError, match=r"none of its 3 images .* include=\['z\*'\]"):
        opened(root, include=("z*",))


def test_include_exclude_and_limit(tmp_path: Path) -> None:
    root = own(tmp_path, 10)
    assert opened(root, include=("[0-4]",), exclude=("2",)).ids == ["0", "1", "3", "4"]
    assert opened(root, limit=3).ids == ["0", "3", "6"]
    assert opened(root, limit=99).ids == [str(n) for n in range(10)]


BAD_YAML = [
    ("name: [", "not valid YAML"),
    ("just text", "must hold keys"),
    ("name: a\nspace: street7\nimage: 'x/{key}.png'\nsplits: {train: {}}\nlable: 3\n", "unknown key 'lable'.*'labels'"),
    ("name: a\nimage: 'x/{key}.png'\nsplits: {train: {}}\n", "either 'space'"),
    ("name: a\nspace: street8\nimage: 'x/{key}.png'\nsplits: {train: {}}\n", "did you mean 'street7'"),
    (
        "name: a\nspace: street7\nimage: '{key}.png'\nsplits: {t: {}}\nlabels: [{path: '{key}.gif', ids: {1: raod}}]\n",
        "no class 'raod'.*'road'",
    ),
    (
        "name: a\nspace: street7\nimage: 'x/{key}.png'\nsplits: {t: {}}\nlabels: [{path: 'y/{key}.png', ids: train}]\n",
        "'trainid', 'labelid' or a map",
    ),
    ("name: a\nspace: street7\nimage: '{key}.png'\nsplits: {t: {list: 3}}\n", r"splits\.t\.list"),
    ("!!python/object/apply:os.system ['touch owned']", "not valid YAML"),
]


@pytest.mark.parametrize(("content", "message"), BAD_YAML)
def test_bad_yaml_names_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset.yaml").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path, "train")
    assert "dataset.yaml" in str(caught.value)


def test_yaml_that_is_binary_or_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset\.yaml there"):
        opened(tmp_path)
    (tmp_path / "dataset.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        opened(tmp_path)


def test_pattern_without_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'images/\{name\}.png' has no \{key\}"):
        root = own(tmp_path)
        yaml = (root / "dataset.yaml").read_text().replace("images/{split}/{key}", "images/{name}")
        (root / "dataset.yaml").write_text(yaml)
        opened(root)


def test_alternative_patterns_and_a_label_pattern_of_other_fields(tmp_path: Path) -> None:
    root = own(tmp_path)
    text = (root / "dataset.yaml").read_text()
    names = ["images/{split}/{key}.png", "pictures/{key}.png"]
    (root / "dataset.yaml").write_text(text.replace(f"'{names[0]}'", str(names)))
    save(root / "pictures/2.png", picture(9))
    save(root / "pictures/3.png", picture(10))
    dataset = opened(root)
    assert dataset.ids == ["0", "1", "2", "3"] and dataset.unlabelled_ids == ["3"]
    assert str(dataset.files(2)[0]).endswith("images/train/2.png"), "the first pattern wins an id"
    (root / "dataset.yaml").write_text(text.replace("labels/{split}/{key}", "labels/{split}/{drive}/{key}"))
    with pytest.raises(DataError, match=r"must have the fields of 'image': key"):
        opened(root)


def test_a_folder_without_labels_is_a_target(tmp_path: Path) -> None:
    root = own(tmp_path)
    for path in (root / "labels/train").iterdir():
        path.unlink()
    dataset = opened(root)
    assert not dataset.labelled and dataset.coverage is None
    with pytest.raises(DataError, match="has no labels"):
        Stream([dataset], None, TransformConfig(), (0,), 1, labelled=True, workers=0)
    assert audit.check(str(root)) == []


def test_labelled_stream_says_at_once_that_a_label_is_missing(tmp_path: Path) -> None:
    root = own(tmp_path)
    (root / LABEL).unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no label file, the first is .*labels/train/1\.png"):
        Stream([opened(root)], None, TransformConfig(), (0,), 1, labelled=True, workers=0)


def test_audit_finds_duplicates_and_stray_labels(tmp_path: Path) -> None:
    root = own(tmp_path)
    (root / "images/val").mkdir()
    (root / "images/val/9.png").write_bytes((root / IMAGE).read_bytes())
    save(root / "labels/train/77.png", np.ones(SIZE, np.uint8))
    found = audit.check(str(root))
    assert [(p.kind, Path(p.file).name) for p in found] == [("no_image", "77.png"), ("duplicate", "9.png")]
    assert str(root / IMAGE) in found[1].message


def test_page_escapes_text_and_shows_the_map(tmp_path: Path) -> None:
    root = own(tmp_path / "data", extra="maps: {street7: {grass: sidewalk}}\n")
    (root / "images/train/0.png").rename(root / "images/train/<b>&.png")
    (root / "labels/train/0.png").rename(root / "labels/train/<b>&.png")
    page = show.show(str(root), tmp_path / "page.html", labels="street7").read_text()
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page
    assert "never labelled in this data: living" in page
    assert page.count("<img") == 9


def test_own_map_is_used_and_its_typos_are_named(tmp_path: Path) -> None:
    root = own(tmp_path, extra="maps: {street7: {grass: sidewalk}}\n")
    label = open_dataset("x", DatasetConfig(dataset=str(root)), "train", load_space("street7")).read_label(0)
    assert set(label.ravel()) == {0, 1, 255} and label[0, 0] == 255 and label[1, 0] == 1
    own(tmp_path, extra="maps: {street7: {gras: sidewalk}}\n")
    with pytest.raises(DataError, match=r"maps\.street7: no class 'gras' .*did you mean 'grass'"):
        open_dataset("x", DatasetConfig(dataset=str(root)), "train", load_space("street7"))


def test_a_map_that_reaches_nothing_says_what_to_declare(tmp_path: Path) -> None:
    yaml = own(tmp_path) / "dataset.yaml"
    yaml.write_text(yaml.read_text().replace("road", "lawn"))
    with pytest.raises(DataError, match=r"no class of the data reaches label space 'street7'.*under 'maps"):
        open_dataset("x", DatasetConfig(dataset=str(tmp_path)), "train", load_space("street7"))


def test_sixteen_bit_channels_and_low_bit_depths(tmp_path: Path) -> None:
    colour = np.zeros((4, 6, 3), np.uint16)
    colour[..., 0], colour[..., 1], colour[..., 2] = 300, 7, 2  # red, green, blue
    cv2.imwrite(str(tmp_path / "c.png"), colour[:, :, ::-1])
    for channel, value in enumerate((300, 7, 2)):
        ids = read_ids(tmp_path / "c.png", channel)
        assert ids.dtype == np.uint16 and set(ids.ravel()) == {value}
    with pytest.raises(DataError, match="3 channels; say which"):
        read_ids(tmp_path / "c.png")
    with pytest.raises(DataError, match="'channel: 3' asked for"):
        read_ids(tmp_path / "c.png", 3)
    from PIL import Image

    for bits in (1, 2, 4):
        values = (np.arange(24, dtype=np.uint8) % 2**bits).reshape(4, 6)
        image = Image.fromarray(values)
        image.putpalette([0, 0, 0, 255, 255, 255] * 128)
        image.save(tmp_path / "p.png", bits=bits)
        assert np.array_equal(read_ids(tmp_path / "p.png"), values)
    Image.fromarray(np.array([[0, 1], [1, 0]], bool)).save(tmp_path / "one.png")
    assert read_ids(tmp_path / "one.png").tolist() == [[0, 1], [1, 0]]


def test_several_fields_in_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(
        "name: k\nspace: street7\nimage: 'raw/{drive}/image_00/{key}.png'\n"
        "labels: [{path: 'sem/{split}/{drive}/{drive}_{key}.png', ids: trainid}]\nsplits: {train: {}}\n"
    )
    for drive in ("a", "b"):
        save(tmp_path / f"raw/{drive}/image_00/1.png", picture(1))
        save(tmp_path / f"raw/{drive}/image_01/1.png", picture(1))
        save(tmp_path / f"sem/train/{drive}/{drive}_1.png", np.full(SIZE, ord(drive) - 97, np.uint8))
    save(tmp_path / "raw/a/image_00/2.png", picture(2))
    save(tmp_path / "sem/train/a/z_2.png", np.zeros(SIZE, np.uint8))
    dataset = opened(tmp_path)
    assert dataset.ids == ["a/1", "a/2", "b/1"]
    assert dataset.unlabelled_ids == ["a/2"], "{drive} comes twice and must be the same text"
    assert [int(dataset.read_label(i).max()) for i in (0, 2)] == [0, 1]


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_image(tmp_path / "deep/a.png", picture(3))
    assert np.array_equal(read_rgb(tmp_path / "deep/a.png"), picture(3))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_catalog_and_folders_need_no_torch(tmp_path: Path) -> None:
    root = own(tmp_path)
    code = (
        "import sys; from segue.data.dataset import open_dataset; from segue.data import audit, catalog\n"
        "from segue.config import DatasetConfig\n"
        f"open_dataset('x', DatasetConfig(dataset={str(root)!r}), 'train').read_sample(0, True)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_reads_no_file_and_is_sorted(tmp_path: Path) -> None:
    for n in (10, 9, 1):
        (tmp_path / f"images/{n}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"images/{n}.png").write_bytes(b"")
    dataset = open_dataset("gta5", DatasetConfig(root=tmp_path), "train")
    assert dataset.ids == ["1", "10", "9"] and not dataset.labelled
