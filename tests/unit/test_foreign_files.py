"""The reader of foreign weight files: tensors out of every container that is met, and nothing executed."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from segue.errors import UserError
from segue.foreign.base import ForeignError, fitting, recognise, translate
from segue.foreign.files import read_foreign, read_state, read_tables

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -2.0])}
SGD = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def same(found: dict[str, Tensor]) -> bool:
    return list(found) == list(STATE) and all(torch.equal(found[k], v) for k, v in STATE.items())


WRAPPINGS: dict[str, Any] = {
    "bare": STATE,
    "state_dict": {"epoch": 3, "state_dict": STATE, "best": torch.tensor(0.5)},
    "model_state_dict": {"opt_state_dict": SGD, "model_state_dict": STATE},
    "model_state": {"cur_itrs": 7, "model_state": STATE, "best_score": np.float64(0.7)},
    "numpy": {"model": STATE, "a": np.float32(1), "b": np.int64(2), "c": np.bool_(True), "d": [np.float64(3)]},
    "nested": {"model": {"state_dict": STATE}},
    "average beside": {"state_dict_ema": {"a.weight": torch.zeros(1)}, "state_dict": STATE},
    "module": {f"module.{k}": v for k, v in STATE.items()},
    "twice": {f"module._orig_mod.module.{k}": v for k, v in STATE.items()},
    "module in part": {"a.weight": STATE["a.weight"], "module.a.bias": STATE["a.bias"]},
    "parameters": {k: torch.nn.Parameter(v) for k, v in STATE.items()},
}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_any_wrapping_in_new_and_old_files(wrapping: str, new_format: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth.tar"
    torch.save(WRAPPINGS[wrapping], path, _use_new_zipfile_serialization=new_format)
    found = read_state(path)
    assert same(found)
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickle_protocols_are_read_or_refused_clearly(protocol: int, tmp_path: Path) -> None:
    torch.save({"model": STATE, "best": np.float64(1)}, tmp_path / "w.pkl", pickle_protocol=protocol)
    if protocol == 2:
        assert same(read_state(tmp_path / "w.pkl"))
    else:  # newer operations are not in torch's safe reader
        try:
            assert same(read_state(tmp_path / "w.pkl"))
        except ForeignError as error:
            assert "w.pkl" in str(error)


def test_safetensors(tmp_path: Path) -> None:
    save_file({f"module.{k}": v for k, v in STATE.items()}, str(tmp_path / "w.safetensors"))
    assert same(dict(sorted(read_state(tmp_path / "w.safetensors").items(), reverse=True)))


def test_names_of_old_numpy_are_known(tmp_path: Path) -> None:
    torch.save({"model": STATE, "best": np.float64(1)}, tmp_path / "new.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "new.pth").read_bytes()
    other = b"numpy.core.multiarray" if b"numpy._core.multiarray" in data else b"numpy._core.multiarray"
    known = b"numpy._core.multiarray" if other == b"numpy.core.multiarray" else b"numpy.core.multiarray"
    assert data.count(known) == 1
    (tmp_path / "old.pth").write_bytes(data.replace(known, other))
    assert same(read_state(tmp_path / "old.pth"))


def test_every_table_of_a_file_can_be_had(tmp_path: Path) -> None:
    other = {"b": torch.zeros(1)}
    torch.save({"model_D": other, "optimizer": SGD, "model_state_dict": STATE}, tmp_path / "w.tar")
    tables = read_tables(tmp_path / "w.tar")
    assert list(tables) == ["model_state_dict", "model_D"]
    assert same(tables["model_state_dict"])


def test_a_name_with_and_without_module_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "module.a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ForeignError, match="mixes two networks"):
        read_state(tmp_path / "w.pth")


class Evil:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "executed"))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_nothing_is_executed(how: str, tmp_path: Path) -> None:
    target, path = tmp_path / "proof", tmp_path / "w.pth"
    content = {"state_dict": STATE, "args": Evil(target)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ForeignError, match=r"w\.pth"):
        read_state(path)
    assert not target.exists()


def test_the_object_that_is_refused_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "net": torch.nn.Linear(1, 1)}, tmp_path / "w.pth")
    with pytest.raises(ForeignError, match=r"an object of torch\.nn\.modules\.linear\.Linear and is not opened"):
        read_state(tmp_path / "w.pth")
    torch.save({"state_dict": STATE, "history": np.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(ForeignError, match="numpy"):  # arrays are more than numbers
        read_state(tmp_path / "w.pth")


def broken(name: str, folder: Path) -> Path:
    good = folder / "good.pth"
    torch.save(STATE, good)
    data = good.read_bytes()
    texts = {
        "empty": b"",
        "page": b"\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "truncated": data[: len(data) // 2],
        "noise": b"\x13\x37" * 500,
        "text": b"not a checkpoint at all",
    }
    path = folder / "w.pth"
    path.write_bytes(texts[name])
    return path


SAID = {
    "empty": "is empty",
    "page": "is a web page",
    "pointer": "git lfs pull",
    "truncated": "truncated or damaged",
    "noise": "no torch file",
    "text": "no torch file",
}


@pytest.mark.parametrize("name", SAID)
def test_files_that_are_no_weights(name: str, tmp_path: Path) -> None:
    path = broken(name, tmp_path)
    with pytest.raises(ForeignError, match=SAID[name]) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [([1, 2], "no state dict"), ({"epoch": 3}, "no state dict"), (SGD, "the state of an optimiser"), (5, "no state")],
)
def test_torch_files_without_weights(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "optim.pth")
    with pytest.raises(ForeignError, match=said):
        read_state(tmp_path / "optim.pth")


def test_wrong_kind_behind_a_name(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.safetensors")
    with pytest.raises(ForeignError, match="as safetensors"):
        read_state(tmp_path / "w.safetensors")
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ForeignError, match="archive is truncated or damaged"):
        read_state(tmp_path / "w.pt")
    with pytest.raises(ForeignError, match="no weights file"):
        read_state(tmp_path)


@pytest.mark.parametrize("new_format", [True, False])
def test_damaged_bytes_never_end_in_another_error(new_format: bool, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": STATE, "best": np.float64(1)}, tmp_path / "good.pth", _use_new_zipfile_serialization=new_format
    )
    data = bytearray((tmp_path / "good.pth").read_bytes())
    generator = torch.Generator().manual_seed(0)
    outcomes = set()
    for _ in range(120):
        flipped = bytearray(data)
        for at in torch.randint(0, len(data), (4,), generator=generator).tolist():
            flipped[at] ^= 0xFF
        (tmp_path / "w.pth").write_bytes(
            flipped[: int(torch.randint(len(data) // 2, len(data) + 1, (), generator=generator))]
        )
        try:
            read_state(tmp_path / "w.pth")
            outcomes.add("read")
        except UserError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_unknown_keys_list_the_layouts_that_were_tried(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    with pytest.raises(ForeignError) as caught:
        read_foreign(tmp_path / "w.pth")
    for part in ("w.pth", "a.weight", "erfnet_cil", "stdc_imagenet", "discriminator"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'erfnet_cil'"):
        read_foreign(tmp_path / "w.pth", "erfnet_cli")


def test_several_fitting_layouts_ask_for_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.foreign.base import LAYOUTS

    for name in ("erfnet_cil", "stdc_imagenet"):
        monkeypatch.setattr(LAYOUTS.get(name), "fits", lambda self, state: True)
    assert fitting(STATE) == ["erfnet_cil", "stdc_imagenet"]
    with pytest.raises(ForeignError, match="erfnet_cil, stdc_imagenet; choose one"):
        recognise(STATE)


def test_translate_renames_drops_and_leaves_the_rest() -> None:
    state = {"a.1.x": torch.ones(1), "b.y": torch.ones(1), "c": torch.ones(1)}
    kept, renamed, dropped = translate(
        state, [(r"a\.(\d)\.(.+)", r"new.\2.\1"), (r"b\..+", "never")], [(r"b\..+", "why")]
    )
    assert list(kept) == ["new.x.1"]
    assert renamed == {"a.1.x": "new.x.1"}
    assert dropped == {"b.y": "why"}
    with pytest.raises(ForeignError, match=r"a\.2 and a\.1 both stand for one"):
        translate({"a.1": torch.ones(1), "a.2": torch.ones(1)}, [(r"a\.\d", "one")])
