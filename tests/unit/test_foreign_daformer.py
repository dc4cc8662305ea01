"""Files of the DAFormer family, synthesised: which network is read, and that it computes what it did there.

``helpers.mit_files`` restates the networks on the files' own names and shares no code with Segue.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.command import segue
from helpers.mit_files import File, State, daformer_logits, encoder_maps, hrda_logits, segformer_logits
from segue.checkpoint import load_model
from segue.convert import ConvertError, plan, write
from segue.foreign.base import ForeignError, fitting, recognise
from segue.models.base import IMAGENET_MEAN, IMAGENET_STD
from segue.models.build import build_model

FUSIONS = ("sepaspp", "aspp", "conv1", "upernet")
OTHERS = ("ema_model.", "imnet_model.")


@cache
def daformer(prefix: str = "model.", fusion: str = "sepaspp", classes: int = 19, seed: int = 0) -> State:
    file = File(seed)
    file.encoder(f"{prefix}backbone.")
    file.daformer(f"{prefix}decode_head.", classes, fusion)
    return file.state


@cache
def hrda(gates: int | None = 3, classes: int = 3, prefix: str = "model.") -> State:
    file = File()
    file.encoder(f"{prefix}backbone.")
    file.daformer(f"{prefix}decode_head.head.", classes, "sepaspp")
    if gates is not None:
        file.daformer(f"{prefix}decode_head.scale_attention.", gates, "conv1", width=24)
    return file.state


def stored(path: Path, state: State) -> Path:
    """As the training code stores it."""
    torch.save(
        {
            "meta": {"CLASSES": ("road",), "iter": 9},
            "state_dict": state,
            "optimizer": {"state": {}, "param_groups": []},
        },
        path,
    )
    return path


def image(side: int = 64) -> Tensor:
    return torch.rand(1, 3, side, side + 32, generator=torch.Generator().manual_seed(4))


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_student_computes_what_was_published(fusion: str, tmp_path: Path) -> None:
    student = daformer(fusion=fusion)
    old = stored(tmp_path / "latest.pth", student | daformer("ema_model.", fusion, seed=1) | daformer("imnet_model."))
    found = plan(old)
    assert (found.foreign.layout, found.faults) == ("mmseg_mit", ())
    settings = {"name": "daformer", "variant": "b0", "fusion": fusion, "channels": 16}
    assert found.foreign.model == settings
    model, labels, info = load_model(write(found, tmp_path / "new"))
    assert labels.name == "cityscapes19"
    assert info["source"]["outputs"] == list(range(19))
    assert any("no commercial use" in note for note in info["notes"])
    expected = daformer_logits(
        student, "model.decode_head.", encoder_maps(student, "model.backbone.", normalised(image()))
    )
    close(model(image()).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["ema_model.", "mic.teacher.ema_model."])
def test_the_teacher_by_its_layout(prefix: str, tmp_path: Path) -> None:
    teacher = daformer(prefix, "conv1", seed=1)
    discriminator = {"model_D.main.conv1.weight": torch.ones(64, 19, 4, 4)}
    old = stored(tmp_path / "iter_40000.pth", daformer(fusion="conv1") | teacher | discriminator)
    student = plan(old)
    assert student.foreign.layout == "mmseg_mit" and student.faults == ()
    assert any("mmseg_mit_teacher" in note for note in student.foreign.notes)
    assert student.foreign.dropped["model_D.main.conv1.weight"].startswith("discriminators")
    found = plan(old, "mmseg_mit_teacher")
    assert found.faults == ()
    assert set(found.foreign.renamed) == set(teacher)
    model, _, _ = load_model(write(found, tmp_path / "new"))
    maps = encoder_maps(teacher, f"{prefix}backbone.", normalised(image()))
    close(model(image()).logits, daformer_logits(teacher, f"{prefix}decode_head.", maps))
    assert recognise(teacher).layout == "mmseg_mit_teacher"  # alone


def test_a_teacher_that_is_not_there_is_told() -> None:
    for state in (daformer("", "conv1"), daformer(fusion="conv1")):
        with pytest.raises(ForeignError, match=r"no Mix Transformer as ema_model\.backbone"):
            recognise(state, "mmseg_mit_teacher")


def test_published_plain_and_whole_files_give_the_same(tmp_path: Path) -> None:
    whole = daformer() | daformer("ema_model.", seed=1) | daformer("imnet_model.")
    expected = recognise(whole)
    published = {k: v for k, v in whole.items() if not k.startswith(OTHERS)}
    plain = {k.removeprefix("model."): v for k, v in published.items()}
    uncounted = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    for state in (published, plain, uncounted):
        found = recognise(state)
        assert (found.layout, found.model, found.dropped, found.unexpected) == ("mmseg_mit", expected.model, {}, ())
        assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.state.items())
        assert plan(stored(tmp_path / "w.pth", state)).faults == ()


def test_other_class_counts_are_not_named(tmp_path: Path) -> None:
    found = plan(stored(tmp_path / "w.pth", daformer(fusion="conv1", classes=16)))
    assert (found.faults, found.foreign.num_classes, found.foreign.classes) == ((), 16, None)
    with pytest.raises(ConvertError, match="--labels"):
        write(found, tmp_path / "new")


def test_the_published_decoder_has_its_parameters() -> None:
    file = File(values=False)
    file.encoder("model.backbone.", "b5")
    file.daformer("model.decode_head.", 19, "sepaspp", 256, "b5")
    sizes = {k: v.numel() for k, v in file.state.items() if "decode_head." in k and "running" not in k}
    assert sum(n for key, n in sizes.items() if not key.endswith("tracked")) == 3_712_275
    found = recognise(file.state)
    assert found.model == {"name": "daformer", "variant": "b5", "fusion": "sepaspp", "channels": 256}
    assert set(found.renamed) == set(file.state) and found.unexpected == ()
    with torch.device("meta"):
        model = build_model(found.model, 19)
    own = {n: t.shape for n, t in model.state_dict().items() if n not in ("mean", "std")}
    assert own == {n: t.shape for n, t in found.state.items()}
    decoder = [p.numel() for n, p in model.named_parameters() if not n.startswith("encoder.")]
    assert sum(decoder) == 3_712_275


@torch.no_grad()
@pytest.mark.parametrize(("gates", "kind"), [(3, "classwise"), (1, "single"), (None, "fixed")])
def test_hrda_computes_what_was_published(gates: int | None, kind: str, tmp_path: Path) -> None:
    state = hrda(gates)
    foreign = recognise(state)
    assert (foreign.layout, foreign.unexpected, foreign.num_classes) == ("mmseg_mit", (), 3)
    width = {"attention_channels": 24} if gates else {}
    base = {"name": "daformer", "variant": "b0", "fusion": "sepaspp", "channels": 16}
    assert foreign.model == {"name": "hrda", "base": base, "attention": kind, **width}
    assert any("1024x1024" in note for note in foreign.notes)
    found = plan(stored(tmp_path / "w.pth", state), settings={"window_px": [64, 64]})
    assert found.faults == ()
    model = found.network.eval()
    fixed = {name: tensor for name, tensor in model.state_dict().items() if name in ("mean", "std")}
    model.load_state_dict({**foreign.state, **fixed})
    share = None if gates else torch.tensor(0.5).view(1, 1, 1, 1)
    expected = hrda_logits(state, "model.", normalised(image(128)[..., :128]), 64, share)
    close(model(image(128)[..., :128]).logits, expected)


def test_a_file_of_hrda_becomes_a_model_folder(tmp_path: Path) -> None:
    old = stored(tmp_path / "w.pth", hrda(19, 19) | hrda(19, 19, "ema_model."))
    model, labels, info = load_model(write(plan(old), tmp_path / "new"))
    assert labels.name == "cityscapes19"
    state = hrda(19, 19)
    gates = "model.decode_head.scale_attention.fuse_layer.conv.weight"
    assert torch.equal(model.get_parameter("attention.decoder.fuse.conv.weight"), state[gates])
    assert info["source"]["layout"] == "mmseg_mit"


@torch.no_grad()
@pytest.mark.parametrize("name", ["daformer", "segformer", "hrda"])
def test_a_whole_network_starts_an_encoder(name: str, tmp_path: Path) -> None:
    base = {"name": "daformer", "variant": "b0", "channels": 8}
    settings: dict[str, Any] = {"hrda": {"base": base}}.get(name, {"variant": "b0", "channels": 8})
    for state in (daformer(fusion="aspp"), hrda()):
        old = stored(tmp_path / "w.pth", state)
        model = build_model({"name": name, **settings, "weights": str(old)}, 5).eval()
        maps = model.get_submodule(model.encoder_prefix.rstrip("."))(normalised(image()))
        for ours, theirs in zip(maps, encoder_maps(state, "model.backbone.", normalised(image())), strict=True):
            close(ours, theirs)


def test_of_an_unknown_decoder_the_encoder_is_read(tmp_path: Path) -> None:
    known = daformer(fusion="conv1")
    other = {k.replace("fuse_layer.", "fuse_layer.in_conv."): v for k, v in known.items()}
    found = plan(stored(tmp_path / "w.pth", other))
    assert (found.foreign.part, found.faults) == ("encoder", ())
    assert found.foreign.dropped == {k: "no decoder here is like it" for k in other if "decode_head." in k}
    assert any("its encoder alone" in note for note in found.foreign.notes)
    assert write(found, tmp_path / "encoder.safetensors").is_file()
    alone = recognise({k: v for k, v in known.items() if "decode_head." not in k})
    assert (alone.part, alone.dropped, alone.unexpected, len(alone.notes)) == ("encoder", {}, (), 1)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_segformer_of_the_daformer_code_has_its_own_order(prefix: str, tmp_path: Path) -> None:
    file = File()
    file.encoder(f"{prefix}backbone.")
    file.segformer(f"{prefix}decode_head.", 19, "linear_c.{}")
    found = plan(stored(tmp_path / "w.pth", file.state))
    assert (found.foreign.model["name"], found.faults) == ("segformer", ())
    assert sorted(found.foreign.dropped) == [f"{prefix}decode_head.conv_seg.{kind}" for kind in ("bias", "weight")]
    model, _, _ = load_model(write(found, tmp_path / "new"))
    maps = encoder_maps(file.state, f"{prefix}backbone.", normalised(image()))
    close(model(image()).logits, segformer_logits(file.state, f"{prefix}decode_head.", maps))


FILES: dict[str, Callable[[], State]] = {fusion: lambda fusion=fusion: daformer(fusion=fusion) for fusion in FUSIONS}
FILES |= {"hrda": hrda, "fixed attention": lambda: hrda(None)}
KEY = "model.backbone.block2.1.attn.kv.weight"


@pytest.mark.parametrize("kind", FILES)
def test_exactly_one_layout_fits_also_when_a_key_is_gone_or_added(kind: str) -> None:
    state = FILES[kind]()
    for gone in list(state)[:: max(1, len(state) // 8)]:
        assert fitting({k: v for k, v in state.items() if k != gone}) == ["mmseg_mit"], gone
    extra = recognise(state | {"novel.weight": torch.ones(1), "model.decode_head.gate": torch.ones(1)})
    assert extra.unexpected == ("novel.weight", "model.decode_head.gate")
    assert set(extra.renamed) | set(extra.dropped) == set(state)


@pytest.mark.parametrize("kind", FILES)
def test_every_key_is_needed(kind: str, tmp_path: Path) -> None:
    state = FILES[kind]()
    needed = [key for key in state if "decode_head." in key and not key.endswith("tracked")]
    for gone in needed[:: max(1, len(needed) // 3)]:
        faults = plan(stored(tmp_path / "w.pth", {k: v for k, v in state.items() if k != gone})).faults
        assert [row.status for row in faults] == ["missing"], gone


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_refused_with_every_fault(kind: str, tmp_path: Path) -> None:
    state = FILES[kind]()
    bent = next(key for key in state if key.endswith(".bn.running_var"))
    norm = "model.backbone.block1.0.norm1.bias"
    damaged = {**state, "model.backbone.gate": torch.ones(1), bent: torch.ones(3), norm: torch.full((32,), torch.nan)}
    del damaged[KEY]
    read = plan(stored(tmp_path / "w.pth", damaged))
    found = {row.status: row for row in read.faults}
    assert {status: row.key or row.ours.removeprefix("base.") for status, row in found.items()} == {
        "missing": "encoder.stages.1.blocks.1.attention.key_value.weight",
        "unexpected": "model.backbone.gate",
        "wrong shape": bent,
        "not finite": norm,
    }
    with pytest.raises(ConvertError, match="4 of"):
        write(read, tmp_path / "new")
    if kind == "sepaspp":
        outcome = segue("convert", tmp_path / "w.pth", tmp_path / "new")
        assert outcome.code == 2 and "4 of" in outcome.err, outcome
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pth"]
