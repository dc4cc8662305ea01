"""DeepLab files in the published key layouts: synthesised here, read, and run against a restatement of their networks.

The restatements (``helpers.deeplab_files``) work on a file's tensors by its own names and share no code with Segue.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet18, resnet50

from helpers.deeplab_files import File, Run, State
from segue.checkpoint import load_model
from segue.convert import ConvertError, plan, write
from segue.foreign.base import Foreign, ForeignError, recognise
from segue.models.build import build_model
from segue.models.encoders import EncoderModel

BGR_MEAN = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
RGB_MEAN, RGB_STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)


def built(foreign: Foreign, **settings: object) -> EncoderModel:
    assert foreign.part == "model" and foreign.num_classes is not None and foreign.unexpected == ()
    model = build_model({**foreign.model, "norm": "frozen", **settings}, foreign.num_classes)
    assert isinstance(model, EncoderModel)
    fixed = {name: tensor for name, tensor in model.state_dict().items() if name in ("mean", "std")}
    model.load_state_dict({**foreign.state, **fixed})
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(foreign.mean))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(foreign.std))
    return model


def image(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(5)).float() / 255


def normalised(x: Tensor) -> Tensor:
    return (x - RGB_MEAN) / RGB_STD


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.fixture(scope="module")
def multi_level() -> State:
    file = File()
    file.resnet(R50)
    file.classic_head("layer5", 1024, 3)
    file.classic_head("layer6", 2048, 3)
    return file.state


@torch.no_grad()
def test_classic_network_computes_what_was_published(multi_level: State) -> None:
    model = built(recognise(multi_level)).train()  # norms frozen: the auxiliary head answers in training only
    x = image(65, 90)  # 65 -> 33 -> 17 -> 9 and 90 -> 45 -> 23 -> 12: both kinds of rounding
    run = Run(multi_level)
    maps = run.resnet(x.flip(1) * 255 - BGR_MEAN, R50, caffe=True)
    main, auxiliary = run.classic("layer6", maps[3], 4), run.classic("layer5", maps[2], 4)
    output = model(x)
    close(output.logits, main)
    close(output.heads[0].logits, auxiliary)
    assert output.heads[0].weight == 0.1
    close(output.upsample(output.logits), F.interpolate(main, (65, 90), mode="bilinear", align_corners=True))


@torch.no_grad()
def test_branches_that_were_never_summed_are_recognised(multi_level: State) -> None:
    state, generator = dict(multi_level), torch.Generator().manual_seed(6)
    for layer, branch in ((5, 2), (5, 3), (6, 2), (6, 3)):
        key = f"layer{layer}.conv2d_list.{branch}.weight"
        state[key] = torch.randn(state[key].shape, generator=generator) * 0.01
    foreign = recognise(state)
    assert foreign.model["rates"] == [6, 12]
    assert len(foreign.dropped) == 8 and all("early return" in reason for reason in foreign.dropped.values())
    x = image(33, 40)
    maps = Run(state).resnet(x.flip(1) * 255 - BGR_MEAN, R50, caffe=True)
    close(built(foreign).eval()(x).logits, Run(state).classic("layer6", maps[3], 2))
    start = {k: torch.randn(v.shape, generator=generator) * 0.01 if "conv2d_list" in k else v for k, v in state.items()}
    assert recognise(start).model["rates"] == [6, 12, 18, 24]  # nothing was trained: no branch is different


def test_single_level_files_prefixes_and_missing_counters(multi_level: State) -> None:
    want = recognise(multi_level)
    advent = {k: v for k, v in multi_level.items() if not k.startswith("layer5")}
    fda = {k.replace("layer6", "layer5"): v for k, v in advent.items()}
    start = {f"Scale.{k}": v for k, v in fda.items() if not k.endswith("num_batches_tracked")}
    for file in (advent, fda, start):
        found = recognise(file)
        assert found.layout == "adaptsegnet" and not found.model["auxiliary"] and found.unexpected == ()
        assert all(torch.equal(tensor, want.state[name]) for name, tensor in found.state.items())
        missing = {n for n in want.state if n not in found.state and not n.endswith("num_batches_tracked")}
        assert {n.split(".")[0] for n in missing} == {"auxiliary"}


def test_every_key_of_the_101_layer_files_has_a_place() -> None:
    classic, region, plus = File(values=False), File(values=False), File(values=False)
    classic.resnet(R101)
    classic.classic_head("layer5", 2048, 19)
    region.resnet(R101, "backbone.")
    region.region_head(2048, 19)
    plus.resnet(R101, "backbone.")
    plus.v3_head(2048, 256, 19, final=False)
    for file, layout, parameters in (
        (classic, "adaptsegnet", 43_901_068),
        (region, "d2ada", 61_379_411),
        (plus, "vainf", 58_753_459),
    ):
        foreign = recognise(file.state)
        assert foreign.layout == layout and foreign.model["encoder"] == "resnet101"
        assert set(foreign.renamed) == set(file.state) and set(foreign.renamed.values()) == set(foreign.state)
        assert foreign.classes is not None and foreign.classes[0] == "road"
        with torch.device("meta"):
            model = build_model(foreign.model, 19)
        own = {n: t.shape for n, t in model.state_dict().items() if n not in ("mean", "std")}
        assert own == {n: t.shape for n, t in foreign.state.items()}
        assert sum(p.numel() for p in model.parameters()) == parameters


@torch.no_grad()
def test_v3plus_on_a_resnet_computes_what_was_published() -> None:
    file = File()
    file.resnet(R50, "backbone.")
    file.v3_head(2048, 256, 4, final=False)
    foreign = recognise(file.state)
    assert foreign.model["encoder"] == "resnet50" and foreign.num_classes == 4 and foreign.classes is None
    x, run = image(64, 96), Run(file.state)
    maps = run.resnet(normalised(x), R50, caffe=False, stride16=True, prefix="backbone.")
    close(built(foreign).eval()(x).logits, run.v3_head(maps[0], maps[3], 16, "classifier.classifier.3"))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    ("low", "final", "separable"), [(24, False, False), (None, False, False), (24, False, True), (24, True, False)]
)
@torch.no_grad()
def test_mobilenet_computes_what_was_published(
    low: int | None, final: bool, separable: bool, output_stride: int
) -> None:
    file = File()
    file.mobilenet()
    file.v3_head(320, low, 4, final=final, separable=separable)
    foreign = recognise(file.state)
    assert foreign.layout == ("d2ada" if final else "vainf")
    x, run = image(64, 96), Run(file.state)
    fine, coarse = run.mobilenet(normalised(x), output_stride)
    last = "classifier.final" if final else f"classifier.classifier.{3 if low else 4}"
    want = run.v3_head(fine if low else None, coarse, output_stride, last)
    close(built(foreign, output_stride=output_stride).eval()(x).logits, want)


@torch.no_grad()
def test_region_head_computes_what_was_published() -> None:
    file = File()
    file.mobilenet()
    file.region_head(320, 4)
    x, run = image(64, 96), Run(file.state)
    model = built(recognise(file.state)).eval()
    close(model(x).logits, run.region_head(run.mobilenet(normalised(x), 16)[1]))


def test_v3_of_d2ada_differs_from_vainf_in_one_name() -> None:
    ours, theirs = File(), File()
    for file, final in ((ours, False), (theirs, True)):
        file.mobilenet()
        file.v3_head(320, None, 19, final=final)
    a, b = recognise(ours.state), recognise(theirs.state)
    assert (a.layout, b.layout) == ("vainf", "d2ada") and a.model == b.model
    assert a.state.keys() == b.state.keys() and all(torch.equal(a.state[k], b.state[k]) for k in a.state)


@pytest.mark.parametrize(("make", "encoder"), [(resnet18, "resnet18"), (resnet50, "resnet50")])
@torch.no_grad()
def test_torchvision_resnets_are_encoders(make: Callable[..., torch.nn.Module], encoder: str) -> None:
    theirs = make(weights=None).eval()
    foreign = recognise(theirs.state_dict())
    assert (foreign.layout, foreign.part, foreign.model["encoder"]) == ("torchvision_resnet", "encoder", encoder)
    assert sorted(foreign.dropped) == ["fc.bias", "fc.weight"] and foreign.unexpected == ()
    model = build_model({**foreign.model, "output_stride": 32}, 2).eval()
    model.get_submodule("encoder").load_state_dict(foreign.state)
    x = normalised(image(64, 64))
    want = torch.nn.Sequential(*list(theirs.children())[:-2])(x)
    close(model.get_submodule("encoder")(x)[-1], want)


@torch.no_grad()
def test_dilation_of_an_encoder_is_torchvisions() -> None:
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    model = build_model({"name": "deeplabv3", "encoder": "resnet50", "output_stride": 8}, 2).eval()
    model.get_submodule("encoder").load_state_dict(recognise(theirs.state_dict()).state)
    x = normalised(image(64, 64))
    close(model.get_submodule("encoder")(x)[-1], torch.nn.Sequential(*list(theirs.children())[:-2])(x))


def test_keys_that_do_not_belong_are_told(multi_level: State) -> None:
    extra = {**multi_level, "layer7.weight": torch.zeros(1), "layer6.conv2d_list.4.bias": torch.zeros(3)}
    assert recognise(extra).unexpected == ("layer7.weight", "layer6.conv2d_list.4.bias")
    with pytest.raises(ForeignError, match=r"both stand for encoder.conv1.weight"):
        recognise({**multi_level, "Scale.conv1.weight": multi_level["conv1.weight"]})
    cut = {k: v for k, v in multi_level.items() if not k.startswith("layer4")}
    with pytest.raises(ForeignError, match=r"no ResNet has \(3, 4, 6, 0\)"):
        recognise(cut)
    flat = copy.copy(multi_level)
    flat["conv1.weight"] = torch.zeros(5)
    assert recognise(flat).state["encoder.conv1.weight"].shape == (5,)


def classic_file() -> State:
    file = File(values=False)
    file.resnet(R50)
    file.classic_head("layer5", 2048, 19)
    return {f"module.{key}": tensor for key, tensor in file.state.items()}


def mobilenet_file(low: int | None, final: bool, values: bool = False) -> State:
    file = File(values)
    file.mobilenet()
    file.v3_head(320, low, 19, final=final)
    return file.state


def region_file() -> State:
    file = File(values=False)
    file.mobilenet()
    file.region_head(320, 19)
    return file.state


FILES: dict[str, tuple[str, Callable[[], State]]] = {
    "adaptsegnet": ("state_dict", classic_file),
    "vainf": ("model_state", lambda: mobilenet_file(24, final=False)),
    "d2ada": ("model_state_dict", lambda: mobilenet_file(None, final=True)),
    "d2ada region": ("model_state_dict", region_file),
    "torchvision_resnet": ("", lambda: dict(resnet18(weights=None).state_dict())),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_refused_with_every_fault(kind: str, tmp_path: Path) -> None:
    wrapper, make = FILES[kind]
    state, path = make(), tmp_path / "theirs.pth"

    def stored(table: State) -> Path:
        torch.save({wrapper: table, "cur_itrs": 7} if wrapper else table, path)
        return path

    assert plan(stored(state)).faults == ()
    weights = [key for key, tensor in state.items() if tensor.ndim == 4]
    lost, bent = weights[3], weights[7]
    damaged = {**state, "backbone.odd.weight": torch.zeros(2), bent: torch.zeros(1, 2, 3, 3)}
    del damaged[lost]
    found = {row.status: row for row in plan(stored(damaged)).faults}
    assert set(found) == {"missing", "unexpected", "wrong shape"}
    assert found["unexpected"].key == "backbone.odd.weight"
    assert found["wrong shape"].key == bent.removeprefix("module.")
    with pytest.raises(ConvertError, match="3 of"):
        write(plan(path), tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theirs.pth"]


@torch.no_grad()
def test_a_converted_file_predicts_without_its_origin(tmp_path: Path) -> None:
    state = mobilenet_file(24, final=False, values=True)
    torch.save({"model_state": state, "best_score": 0.7}, tmp_path / "best_deeplabv3plus_mobilenet.pth")
    write(plan(tmp_path / "best_deeplabv3plus_mobilenet.pth"), tmp_path / "ours")
    model, labels, _ = load_model(tmp_path / "ours")
    assert labels.classes[-1] == "bicycle"
    x, run = image(64, 64), Run(state)
    want = run.v3_head(*run.mobilenet(normalised(x), 16), 16, "classifier.classifier.3")
    close(model.eval()(x).logits, want)
