"""SegFormers as their authors, Hugging Face and open-mmlab store them: one network under four sets of names.

``helpers.mit_files`` restates the authors' network; that of Hugging Face is ``transformers`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForImageClassification, SegformerForSemanticSegmentation

from helpers.command import segue
from helpers.mit_files import File, State, encoder_maps, hub_names, openmmlab_names, segformer_logits
from segue.checkpoint import load_model
from segue.convert import ConvertError, plan, write
from segue.foreign.base import ForeignError, fitting, recognise
from segue.models.base import IMAGENET_MEAN, IMAGENET_STD
from segue.models.build import build_model
from segue.models.weights import WeightsError

HUB_KEYS = {  # as in files of the hub, and as transformers names its modules since version 5
    "segformer.encoder.patch_embeddings.0.proj.weight": "segformer.stages.0.patch_embeddings.proj.weight",
    "segformer.encoder.patch_embeddings.3.layer_norm.bias": "segformer.stages.3.patch_embeddings.layer_norm.bias",
    "segformer.encoder.block.1.0.layer_norm_1.weight": "segformer.stages.1.blocks.0.layernorm_before.weight",
    "segformer.encoder.block.1.1.attention.self.query.bias": "segformer.stages.1.blocks.1.attention.q_proj.bias",
    "segformer.encoder.block.1.1.attention.self.value.bias": "segformer.stages.1.blocks.1.attention.v_proj.bias",
    "segformer.encoder.block.1.1.mlp.dense2.weight": "segformer.stages.1.blocks.1.mlp.fc2.weight",
    "segformer.encoder.layer_norm.3.weight": "segformer.stages.3.layer_norm.weight",
    "decode_head.linear_c.3.proj.weight": "decode_head.linear_projections.3.proj.weight",
    "decode_head.linear_fuse.weight": "decode_head.linear_fuse.weight",
    "decode_head.batch_norm.running_var": "decode_head.batch_norm.running_var",
    "decode_head.classifier.bias": "decode_head.classifier.bias",
}
OPENMMLAB_KEYS = {
    "backbone.layers.0.0.projection.weight": (32, 3, 7, 7),
    "backbone.layers.1.1.0.norm1.weight": (64,),
    "backbone.layers.1.1.1.attn.attn.in_proj_weight": (192, 64),
    "backbone.layers.1.1.1.attn.attn.in_proj_bias": (192,),
    "backbone.layers.1.1.1.attn.attn.out_proj.bias": (64,),
    "backbone.layers.0.1.1.attn.sr.weight": (32, 32, 8, 8),
    "backbone.layers.0.1.1.attn.norm.weight": (32,),
    "backbone.layers.0.1.1.ffn.layers.0.weight": (128, 32, 1, 1),
    "backbone.layers.0.1.1.ffn.layers.1.weight": (128, 1, 3, 3),
    "backbone.layers.0.1.1.ffn.layers.4.weight": (32, 128, 1, 1),
    "backbone.layers.3.2.bias": (256,),
}


@cache
def authors(classes: int = 19, width: int = 16) -> State:
    file = File()
    file.encoder("backbone.")
    file.segformer("decode_head.", classes, "linear_c{}", width)
    return file.state


@cache
def encoder() -> State:
    return {k.removeprefix("backbone."): v for k, v in authors().items() if k.startswith("backbone.")}


@cache
def openmmlab() -> State:
    """Its SegFormer, whose head has a norm in every level."""
    head = File()
    for level, channels in enumerate((32, 64, 160, 256)):
        head.unit(f"decode_head.convs.{level}", channels, 16)
    head.unit("decode_head.fusion_conv", 64, 16)
    head.conv("decode_head.conv_seg", (19, 16, 1, 1), bias=True)
    return openmmlab_names(encoder(), "backbone.") | head.state


def image() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(4))


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def close(ours: Tensor, theirs: Tensor, share: float = 1e-4) -> None:
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=share, atol=share * theirs.abs().max().item())


def stored(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, str(path))
    else:
        torch.save(state, path)
    return path


@torch.no_grad()
def test_the_authors_network_computes_what_was_published(tmp_path: Path) -> None:
    state = authors()
    torch.save({"meta": {"CLASSES": ["road"]}, "state_dict": state}, tmp_path / "segformer.b0.pth")
    found = plan(tmp_path / "segformer.b0.pth")
    assert (found.foreign.layout, found.faults) == ("mmseg_mit", ())
    assert found.foreign.model == {"name": "segformer", "variant": "b0", "channels": 16}
    assert set(found.foreign.dropped) == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    model, labels, _ = load_model(write(found, tmp_path / "new"))
    assert labels.name == "cityscapes19"
    maps = encoder_maps(state, "backbone.", normalised(image()))
    close(model(image()).logits, segformer_logits(state, "decode_head.", maps))


@pytest.mark.parametrize("new", [False, True])
def test_hugging_face_has_the_authors_network_under_other_names(new: bool, tmp_path: Path) -> None:
    state = hub_names(authors(), new)
    assert set(HUB_KEYS.values() if new else HUB_KEYS) <= set(state)
    found, expected = recognise(state), recognise(authors())
    assert (found.layout, found.model, found.unexpected) == ("segformer_hub", expected.model, ())
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.state.items())
    assert set(found.renamed) == set(state)
    for name in ("model.safetensors", "pytorch_model.bin"):
        complete = plan(stored(tmp_path / name, state))
        assert (complete.faults, complete.foreign.classes) == ((), expected.classes)


def theirs(make: type[nn.Module]) -> nn.Module:
    """A model of transformers with values as after training."""
    config = SegformerConfig(num_labels=150, decoder_hidden_size=16, classifier_dropout_prob=0.0)
    model = make(config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 1.5) if "norm" in name and name.endswith(("weight", "var")) else (-0.2, 0.2)
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def trained_eps(model: nn.Module) -> nn.Module:
    """The epsilons of the authors' training instead of those of transformers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5
            module.eps = 1e-5 if "patch_embeddings" in name or "sequence_reduction" in name else 1e-6
    return model


@torch.no_grad()
@pytest.mark.parametrize("by_state_dict", [False, True])
def test_transformers_computes_the_same(by_state_dict: bool, tmp_path: Path) -> None:
    model = theirs(SegformerForSemanticSegmentation)
    if by_state_dict:
        old = stored(tmp_path / "pytorch_model.bin", model.state_dict())
    else:
        model.save_pretrained(tmp_path / "hub")
        old = tmp_path / "hub" / "model.safetensors"
    found = plan(old)
    assert (found.foreign.layout, found.faults, found.foreign.num_classes) == ("segformer_hub", (), 150)
    assert any("1e-5 in transformers" in note for note in found.foreign.notes)
    with pytest.raises(ConvertError, match="--labels"):
        write(found, tmp_path / "new")
    ours, labels, _ = load_model(write(found, tmp_path / "new", "ade150"))
    assert labels.classes[0] == "wall"
    x = normalised(image())
    close(ours(image()).logits, model(pixel_values=x).logits)
    exact = ours.double().decode(x.double()).logits
    with pytest.raises(AssertionError, match="not close"):  # its epsilons are not those of the training
        close(exact, model.double()(pixel_values=x.double()).logits, 1e-9)
    close(exact, trained_eps(model)(pixel_values=x.double()).logits, 1e-9)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["classifier", "bare", "whole"])
@pytest.mark.parametrize("name", ["daformer", "segformer"])
def test_a_file_of_the_hub_starts_an_encoder(name: str, kind: str, tmp_path: Path) -> None:
    model = theirs(SegformerForSemanticSegmentation if kind == "whole" else SegformerForImageClassification)
    (model.segformer if kind == "bare" else model).save_pretrained(tmp_path / "hub")
    weights = tmp_path / "hub" / "model.safetensors"
    found = plan(weights)
    assert (found.foreign.part, found.faults) == ("model" if kind == "whole" else "encoder", ())
    assert len(found.foreign.dropped) == (2 if kind == "classifier" else 0)
    ours = build_model({"name": name, "variant": "b0", "channels": 8, "weights": str(weights)}, 3).eval()
    x = normalised(image())
    hidden = trained_eps(model).segformer(pixel_values=x, output_hidden_states=True).hidden_states[-4:]
    for map_ours, map_theirs in zip(ours.get_submodule("encoder")(x), hidden, strict=True):
        close(map_ours, map_theirs, 1e-5)


def test_the_cache_of_the_hub_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("segue.models.weights._hub_answers", lambda: False)
    settings = {"name": "daformer", "variant": "b0", "channels": 8, "weights": "imagenet"}
    with pytest.raises(WeightsError, match="ImageNet weights of 'daformer' could not be had"):
        build_model(settings, 3)
    repository, commit = tmp_path / "models--nvidia--mit-b0", 40 * "a"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    state = hub_names({k: v for k, v in authors().items() if k.startswith("backbone.")}, new=False)
    stored(repository / "snapshots" / commit / "pytorch_model.bin", state)
    ours = build_model(settings, 3)
    torch.testing.assert_close(
        ours.state_dict()["encoder.stages.0.patches.conv.weight"],
        state["segformer.encoder.patch_embeddings.0.proj.weight"],
    )
    assert any("NVIDIA" in note for note in ours.notes)
    wrapped = build_model(
        {"name": "hrda", "base": {k: v for k, v in settings.items() if k != "weights"}, "weights": "imagenet"}, 3
    )
    assert wrapped.notes == ours.notes


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True])
def test_open_mmlab_gives_the_authors_encoder(whole: bool, tmp_path: Path) -> None:
    state = openmmlab() if whole else openmmlab_names(encoder())
    if whole:
        assert {key: tuple(state[key].shape) for key in OPENMMLAB_KEYS} == OPENMMLAB_KEYS
    found, expected = plan(stored(tmp_path / "mit_b0.pth", state)), recognise(encoder())
    assert (found.foreign.layout, found.foreign.part, found.faults) == ("openmmlab_mit", "encoder", ())
    assert found.foreign.state.keys() == expected.state.keys()
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.foreign.state.items())
    assert all(key.startswith("decode_head.") for key in found.foreign.dropped)
    assert bool(found.foreign.dropped) == whole
    weights = str(tmp_path / "mit_b0.pth")
    model = build_model({"name": "daformer", "variant": "b0", "channels": 8, "weights": weights}, 3).eval()
    for ours, maps in zip(model.get_submodule("encoder")(image()), encoder_maps(encoder(), "", image()), strict=True):
        close(ours, maps)


FILES: dict[str, tuple[str, Callable[[], State]]] = {
    "authors": ("mmseg_mit", authors),
    "hub": ("segformer_hub", lambda: hub_names(authors(), False)),
    "hub, new names": ("segformer_hub", lambda: hub_names(authors(), True)),
    "open-mmlab": ("openmmlab_mit", openmmlab),
}


@pytest.mark.parametrize("kind", FILES)
def test_exactly_one_layout_fits_also_when_a_key_is_gone_or_added(kind: str) -> None:
    layout, make = FILES[kind]
    state = make()
    for gone in list(state)[:: max(1, len(state) // 8)]:
        assert fitting({k: v for k, v in state.items() if k != gone}) == [layout], gone
    extra = recognise(state | {"novel.weight": torch.ones(1)})
    assert extra.unexpected == ("novel.weight",)
    assert set(extra.renamed) | set(extra.dropped) == set(state)


@pytest.mark.parametrize("kind", FILES)
def test_every_key_is_needed(kind: str, tmp_path: Path) -> None:
    state = FILES[kind][1]()
    dropped = recognise(state).dropped
    last_blocks = [k for k in state if ".1." in k or "decode_head." in k or "norm" in k]  # not what tells the depth
    needed = [k for k in last_blocks if k not in dropped and not k.endswith("tracked")]
    for gone in needed[:: max(1, len(needed) // 6)]:
        faults = plan(stored(tmp_path / "w.pth", {k: v for k, v in state.items() if k != gone})).faults
        halved = any(half in gone for half in (".self.key", ".self.value", ".k_proj", ".v_proj"))
        assert {row.status for row in faults} <= ({"wrong shape"} if halved else {"missing"}) and faults, gone


DAMAGE = [
    ("hub", "segformer.encoder.block.1.1.attention.self.value.weight"),
    ("hub, new names", "segformer.stages.1.blocks.1.attention.k_proj.weight"),
    ("open-mmlab", "backbone.layers.1.1.1.attn.attn.in_proj_weight"),
    ("authors", "backbone.block2.1.attn.kv.weight"),
    ("hub", "decode_head.linear_fuse.weight"),
    ("authors", "decode_head.linear_fuse.conv.weight"),
]


@pytest.mark.parametrize(("kind", "key"), DAMAGE)
def test_a_damaged_file_is_refused(kind: str, key: str, tmp_path: Path) -> None:
    state = FILES[kind][1]()
    old = tmp_path / "w.pth"

    def faults(tensor: Tensor | None) -> list[tuple[str, str]]:
        changed = {k: v for k, v in {**state, key: tensor}.items() if v is not None}
        rows = plan(stored(old, changed)).faults
        assert all(row.status != "unexpected" for row in rows)
        return [(row.status, row.key) for row in rows]

    good = state[key]
    assert faults(good) == []
    for bad in (good[1:], good[:, 1:], torch.tensor(1.0)):
        assert ("wrong shape", key) in faults(bad), bad.shape
    nan = good.clone()
    nan.view(-1)[0] = torch.nan  # the first part of what is split
    assert ("not finite", key) in faults(nan)
    nan = good.clone()
    nan.view(-1)[-1] = torch.nan
    assert ("not finite", key) in faults(nan)
    assert faults(None)
    with pytest.raises(ConvertError, match="nothing is written"):
        write(plan(old), tmp_path / "new")
    if kind == "hub":
        assert segue("convert", old, tmp_path / "new").code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]
    if "decode_head" not in key:
        with pytest.raises(WeightsError, match="every entry must"):
            build_model({"name": "segformer", "variant": "b0", "channels": 8, "weights": str(old)}, 3)


def test_two_name_layouts_in_one_file_are_refused() -> None:
    with pytest.raises(ForeignError, match="mixes two networks"):
        recognise(hub_names(authors(), False) | hub_names(authors(), True))


@pytest.mark.parametrize("names", ["hub", "openmmlab", "authors"])
def test_the_published_sizes_are_told(names: str) -> None:
    for variant, width in (("b1", 256), ("b2", 768), ("b5", 768)):
        file = File(values=False)
        file.encoder("backbone.", variant)
        file.segformer("decode_head.", 19, "linear_c{}", width, variant)
        state = file.state
        if names == "hub":
            state = hub_names(state, True)
        if names == "openmmlab":
            state = openmmlab_names({k.removeprefix("backbone."): v for k, v in state.items() if "backbone" in k})
        found = recognise(state)
        assert found.model["variant"] == variant
        with torch.device("meta"):
            model = build_model(found.model, 19)
        own = {n: t.shape for n, t in model.state_dict().items() if n not in ("mean", "std")}
        if found.part == "encoder":
            own = {n.removeprefix("encoder."): shape for n, shape in own.items() if n.startswith("encoder.")}
        assert own == {n: t.shape for n, t in found.state.items()}


def test_our_own_encoder_is_not_taken_for_theirs() -> None:
    for name in ("segformer", "daformer"):
        model = build_model({"name": name, "variant": "b0", "channels": 8}, 3)
        assert fitting(model.state_dict()) == []
        assert fitting(model.get_submodule("encoder").state_dict()) == []
