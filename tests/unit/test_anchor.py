"""What a model keeps of its source images: exact statistics, samples, styles, and files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from torch import Tensor

from helpers.anchored import CLASSES, SPACE, Colours, anchor, images, network, stored
from helpers.command import segue
from helpers.wrapped import Cells
from segue import checkpoint
from segue.data import scenes
from segue.errors import UserError
from segue.files import read_json
from segue.labels import IGNORE, load_space
from segue.models.anchor import FILE, AnchorError, Moments, _prototypes, cell_labels, make_anchor, read_anchor
from segue.models.base import ModelConfig, Output
from segue.models.build import build_model
from segue.models.style import Style, style_layer, style_of, style_vector


def rows(seed: int, number: int = 5) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Embeddings (3,4,6) far from 0, classes, styles."""
    g = torch.Generator().manual_seed(seed)
    return [
        (
            50 + torch.randn(3, 4, 6, generator=g),
            torch.randint(0, 3, (4, 6), generator=g),
            torch.randn(2, generator=g),
        )
        for _ in range(number)
    ]


def summed(given: list[tuple[Tensor, Tensor, Tensor]]) -> Moments:
    moments = Moments(4, 3)
    for row in given:
        moments.add(*row)
    return moments


def test_moments_are_those_of_numpy() -> None:
    given = rows(0)
    moments = summed(given)
    cells = np.concatenate([e.flatten(1).T.double().numpy() for e, _, _ in given])
    labels = np.concatenate([c.flatten().numpy() for _, c, _ in given])
    for number in range(3):
        own = cells[labels == number]
        assert moments.count[number] == len(own)
        np.testing.assert_allclose(moments.mean()[number], own.mean(0), rtol=1e-13)
        np.testing.assert_allclose(moments.covariance(number), np.cov(own.T, bias=True), atol=1e-10)
    assert moments.count[3] == 0 and not moments.mean()[3].any() and not moments.covariance(3).any()
    assert torch.equal(torch.stack(moments.styles), torch.stack([style for _, _, style in given]))


def nearest_label(label: np.ndarray, output: Output, y: int, x: int) -> int:
    """Class at the centre of a cell, one cell at a time."""
    at = []
    for cell, cells, side, padded, pixels in zip(
        (y, x), output.embedding.shape[-2:], output.size, output.padded, label.shape, strict=True
    ):
        place = cell * (padded - 1) / (cells - 1) if output.align_corners else (cell + 0.5) * padded / cells - 0.5
        pixel = int(np.floor(place + 0.5))
        if pixel >= side:
            return IGNORE
        at.append(min(pixels - 1, int((pixel + 0.5) * pixels / side)))
    return int(label[at[0], at[1]])


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("finer", [1, 3])
def test_a_cell_has_the_class_at_its_centre(align: bool, finer: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 7, (70 * finer, 90 * finer)).astype(np.uint8)
    grid = torch.empty(1, 1, 12, 12)
    output = Output(grid, grid, size=(70, 90), padded=(96, 96), align_corners=align)
    found = cell_labels(label, output)
    wanted = [[nearest_label(label, output, y, x) for x in range(12)] for y in range(12)]
    assert found.tolist() == wanted
    assert (found[-1] == IGNORE).all() and (found[0, :8] != IGNORE).all()


def test_an_anchor_is_what_the_images_say() -> None:
    model, data = network(), Colours(16)
    found = make_anchor(model, data, SPACE, batch_size=3)
    cells: list[list[np.ndarray]] = [[] for _ in range(CLASSES)]
    with torch.no_grad():
        for index in range(16):
            output = model(images(data, index, 1))
            _, label = data.read_scored(index)
            embedding = output.embedding[0].double().numpy()
            for y in range(embedding.shape[1]):
                for x in range(embedding.shape[2]):
                    number = nearest_label(label, output, y, x)
                    if number != IGNORE:
                        cells[number].append(embedding[:, y, x])
    assert found.count.tolist() == [len(c) for c in cells] and found.count[6] == 0 and found.images == 16
    covariance = found.covariance()
    for number, own in enumerate(cells[:6]):
        np.testing.assert_allclose(found.mean[number], np.mean(own, 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(covariance[number], np.cov(np.array(own).T, bias=True), atol=1e-4)
    assert not found.mean[6].any() and not covariance[6].any() and not found.prototypes[6].any()
    state = model.state_dict()
    for name, value in found.norms.items():
        path, _, kind = name.rpartition(".")
        assert torch.equal(value, state[f"{path}.running_{kind}"])
    assert len(found.norms) == 2 * sum(name.endswith("running_mean") for name in state)


def test_fewer_directions_keep_every_variance() -> None:
    whole, part = anchor(), make_anchor(network(), Colours(16), SPACE, rank=3)
    assert part.factor.shape[2] == 3 and part.describe()["bytes"] < whole.describe()["bytes"]
    np.testing.assert_allclose(
        part.covariance().diagonal(dim1=1, dim2=2), whole.covariance().diagonal(dim1=1, dim2=2), rtol=1e-3, atol=1e-6
    )
    values = torch.linalg.eigvalsh(whole.covariance()[2].double())[-3:]
    np.testing.assert_allclose(sorted(part.factor[2].square().sum(0)), sorted(values), rtol=1e-3)


def test_prototypes_are_clusters_of_the_means_in_images() -> None:
    moments = summed(rows(1, 20))
    found = make_anchor(network(), Colours(16), SPACE, prototypes=3).prototypes
    assert found.shape[:2] == (CLASSES, 3)
    few = make_anchor(network(), Colours(16), SPACE, prototypes=40).prototypes
    assert few.shape[1] == 16, "not more than there are images"
    points = torch.stack(moments.image_means[0]).double().numpy()
    ours = _prototypes(moments.image_means, 3, 4)[0]
    best = KMeans(4, n_init=20, random_state=5).fit(points).inertia_
    distance = ((points[:, None] - ours.double().numpy()[None]) ** 2).sum(2).min(1).sum()
    assert distance <= 1.1 * best


def test_samples_have_the_mean_and_covariance() -> None:
    found = make_anchor(network(), Colours(16), SPACE, rank=4)
    classes = torch.full((40000,), 2)
    drawn = found.sample(classes, torch.Generator().manual_seed(0)).double()
    error = (torch.cov(drawn.T) - found.covariance()[2]).norm() / found.covariance()[2].norm()
    assert error < 0.05
    assert ((drawn.mean(0) - found.mean[2]).abs() < 5 * drawn.std(0) / 200 + 1e-6).all()
    again = found.sample(classes, torch.Generator().manual_seed(0))
    assert torch.equal(again.double(), drawn)


def test_style_is_measured_where_norm_layers_have_no_say() -> None:
    model = network()
    layer = style_layer(model)
    assert layer == "backbone.features.0.norm"
    other = copy.deepcopy(model)
    for name, buffer in other.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(1)
    x = model._prepared(images(Colours(4)))
    seen = model.backbone.features[0].conv(x).detach().double().numpy()  # type: ignore[index, union-attr]
    wanted = np.concatenate([seen.mean((2, 3)), seen.std((2, 3))], 1)
    for one in (model, other):
        np.testing.assert_allclose(style_of(one, layer, x), wanted, rtol=1e-4, atol=1e-5)
    assert style_layer(Cells(ModelConfig(name="cells"), 3)) == "encoder", "without norms the first convolution"
    tokens = torch.randn(2, 5, 8)
    np.testing.assert_allclose(style_vector(tokens, torch.nn.LayerNorm(8))[:, :8], tokens.mean(1), atol=1e-6)


def test_style_of_a_set() -> None:
    vectors = torch.randn(401, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    style = Style.fit(vectors)
    known, held = vectors[::2].double().numpy(), vectors[1::2].double().numpy()
    distance = (((held - known.mean(0)) / known.std(0, ddof=1)) ** 2).mean(1)
    np.testing.assert_allclose(style.radius, np.quantile(distance, 0.99), rtol=1e-5)
    np.testing.assert_allclose(style.distance(vectors[1::2]), distance, rtol=1e-4)
    assert not style.inside(vectors + 20).any() and style.inside(vectors).float().mean() > 0.95
    with pytest.raises(UserError, match="at least 4"):
        Style.fit(vectors[:3])


def test_an_anchor_travels_with_the_weights(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a")
    model, _, info = checkpoint.load_model(folder)
    assert model.anchor is not None
    mine, theirs = anchor().tensors(), model.anchor.tensors()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert model.anchor.layer == anchor().layer and model.anchor.classes == SPACE.classes
    assert info["anchor"]["bytes"] == sum(v.nbytes for v in mine.values())
    assert info["anchor"]["bytes"] <= (folder / FILE).stat().st_size
    second = network(1)
    checkpoint.start_from(second, SPACE, folder)
    checkpoint.save(tmp_path / "b", 3, second, SPACE, {}, {})
    again = checkpoint.load_model(tmp_path / "b" / "iteration_00000003")[0]
    assert again.anchor is not None and torch.equal(again.anchor.factor, anchor().factor)
    bare = stored(tmp_path / "c", network(), anchored=False)
    assert checkpoint.load_model(bare)[0].anchor is None and "anchor" not in read_json(bare / "model.json")


@pytest.mark.parametrize("damage", ["cut", "garbage", "lacking", "shape"])
def test_a_damaged_anchor_is_told(damage: str, tmp_path: Path) -> None:
    folder = stored(tmp_path / "a")
    path = folder / FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"nothing")
    else:
        tensors = load_file(str(path))
        head = {"anchor": json.dumps({"classes": list(SPACE.classes), "layer": "x", "images": 4})}
        mean = tensors.pop("mean")
        save_file(tensors if damage == "lacking" else {**tensors, "mean": mean[:3].contiguous()}, str(path), head)
    with pytest.raises(AnchorError, match=r"anchor\.safetensors.*make it again"):
        checkpoint.load_model(folder)


def test_what_makes_no_anchor() -> None:
    with pytest.raises(AnchorError, match="at least 4 images"):
        make_anchor(network(), Colours(3), SPACE)

    class Void(Colours):
        def read_scored(self, index: int):  # type: ignore[no-untyped-def]
            image, label = super().read_scored(index)
            return image, np.full_like(label, IGNORE)

    with pytest.raises(AnchorError, match="nothing to keep"):
        make_anchor(network(), Void(4), SPACE)


def test_images_of_several_sizes_and_no_effect_on_the_model() -> None:
    class Sizes(Colours):
        def read_scored(self, index: int):  # type: ignore[no-untyped-def]
            image, label = super().read_scored(index)
            return (image[:48], label[:48]) if index % 2 else (image, label)

    model = network().train()
    before = copy.deepcopy(model.state_dict())
    seen: list[tuple[int, int]] = []
    found = make_anchor(model, Sizes(9), SPACE, batch_size=4, limit=5, progress=lambda a, b: seen.append((a, b)))
    assert found.images == 5 and seen[-1] == (5, 5) and model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_command(tmp_path: Path) -> None:
    scenes.write(tmp_path / "game", num=5, seed=0, domain=scenes.domain("game"), size=(64, 96), layout="gta5")
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", "width": 0.125}, 19)
    (tmp_path / "new").mkdir()
    checkpoint.save_model(tmp_path / "new", model, load_space("cityscapes19"), {"run": "r"})
    done = segue("anchor", tmp_path / "new", "--data", "gta5:train", "--root", tmp_path / "game", "--device", "cpu")
    assert done.code == 0, done.err
    found = read_anchor(tmp_path / "new")
    info = read_json(tmp_path / "new" / "model.json")
    assert found is not None and found.images == 5 and info["anchor"]["images"] == 5 and info["run"] == "r"
    assert f"{info['anchor']['bytes'] / 1e6:.2f} MB" in done.out
    refused = segue("anchor", tmp_path / "none", "--data", "gta5:train")
    assert refused.code == 2 and "no model at" in refused.err and "Traceback" not in refused.err
