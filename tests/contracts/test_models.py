"""What every registered model must do; a new model file is picked up by itself (``SegModel.tiny``: its settings)."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segue.errors import UserError
from segue.export import Export, export
from segue.export.graph import Deployed
from segue.export.session import ExportError, open_session
from segue.labels import LabelSpace
from segue.models.base import MODELS, ModelConfig, Output, SegModel
from segue.models.build import build_model
from segue.models.growth import class_dim, convolutions
from segue.models.trained import NORM_TYPES

CLASSES = 5
SIZES = [(227, 320), (32, 32), (33, 47), (129, 40)]
FUSED = ("hrda",)
"""Models whose logits are made of several classifications, of which the embedding's is one."""

pytestmark = pytest.mark.parametrize("name", MODELS.names())


def make(name: str, labels_n: int = CLASSES, layout: dict[str, Any] | None = None, **settings: Any) -> SegModel:
    torch.manual_seed(0)
    return build_model({"name": name, **MODELS.get(name).tiny(), **settings}, labels_n, layout)


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def drawn(model: SegModel, batch: Tensor) -> Output:
    """An answer whose random draws are always the same."""
    torch.manual_seed(4)
    output: Output = model(batch)
    return output


def randomise_norms(model: SegModel) -> SegModel:
    """Statistics and affine as after training, so that no test passes because they are 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def loss_of(output: Output) -> Tensor:
    """Depends on every logit with its own factor: a plain sum has no gradient below a norm."""
    generator = torch.Generator().manual_seed(2)
    maps = [output.logits, *(h.logits for h in output.heads)]
    return torch.stack([(m.float() * torch.randn(m.shape, generator=generator)).mean() for m in maps]).sum()


def norms(model: SegModel, prefix: str = "") -> list[nn.Module]:
    return [m for n, m in model.named_modules() if isinstance(m, NORM_TYPES) and n.startswith(prefix)]


def first_classifier(model: SegModel) -> nn.Module:
    return next(iter(model.classifiers().values()))


def test_class_says_what_it_needs(name: str) -> None:
    cls = MODELS.get(name)
    assert issubclass(cls, SegModel)
    assert issubclass(cls.Config, ModelConfig)
    assert cls.__doc__
    model = make(name)
    assert any(n.startswith(cls.encoder_prefix) for n, _ in model.named_parameters())
    assert all(hasattr(model, part) for part in cls.training_only)


@pytest.mark.parametrize("size", SIZES)
def test_any_size_gives_logits_that_upsample_to_it(name: str, size: tuple[int, int]) -> None:
    model = make(name).eval()
    with torch.no_grad():
        output = model(image(2, 3, *size))
    assert output.logits.shape[:2] == (2, CLASSES)
    assert output.upsample(output.logits).shape == (2, CLASSES, *size)
    assert output.upsample(output.logits, (2 * size[0], 3 * size[1])).shape == (2, CLASSES, 2 * size[0], 3 * size[1])
    assert output.size == size
    assert all(p % model.multiple == 0 for p in output.padded)
    assert output.logits.isfinite().all()
    assert output.logits.std() > 0
    heights = [s.shape[-2] for s in output.stages]
    assert heights and heights == sorted(heights, reverse=True)


def test_too_small_an_image_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="at least 32"):
        make(name)(image(1, 3, 31, 64))


def test_embedding_is_what_the_classifier_reads(name: str) -> None:
    model = make(name).eval()
    with torch.no_grad():
        output = model(image(1, 3, 64, 96))
        found = first_classifier(model)(output.embedding)
    assert found.shape[:2] == output.logits.shape[:2]
    if name not in FUSED:
        torch.testing.assert_close(found, output.logits)


def test_heads_exist_in_training_only(name: str) -> None:
    model = make(name)
    output = model(image(2, 3, 64, 96))
    for head in output.heads:
        assert head.logits.shape[:2] == (2, CLASSES if head.target == "classes" else 1)
        assert output.upsample(head.logits).shape[-2:] == (64, 96)
    assert len({h.name for h in output.heads}) == len(output.heads)
    assert model.eval()(image(2, 3, 64, 96)).heads == ()


def test_padding_is_a_margin_of_mean_colour(name: str) -> None:
    model = randomise_norms(make(name)).eval()
    small = image(1, 3, 70, 90)
    full_h, full_w = (70 + -70 % model.multiple, 90 + -90 % model.multiple)
    padded = model.mean.expand(1, 3, full_h, full_w).clone()
    padded[..., :70, :90] = small
    with torch.no_grad():
        a, b = model(small), model(padded)
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.upsample(a.logits), b.upsample(b.logits)[..., :70, :90])


def step(model: SegModel) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    loss_of(model(image(2, 3, 64, 96))).backward()
    with torch.no_grad():
        for parameter in trainable:
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def test_frozen_encoder_stays_through_train_and_eval(name: str) -> None:
    prefix = MODELS.get(name).encoder_prefix
    model = make(name, freeze=("^" + re.escape(prefix),))
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # as built, and after an evaluation
        assert not any(m.training for m in norms(model, prefix))
        step(model)
        model.eval()
        model.train()
    after = model.state_dict()
    changed = {k for k in after if not torch.equal(before[k], after[k])}
    assert changed
    assert not [k for k in changed if k.startswith(prefix)]
    own = {id(m) for m in norms(model, prefix)}
    assert all(m.training for m in norms(model) if id(m) not in own)


def test_freeze_pattern_without_a_match_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        make(name, freeze=("no_such_layer",))


@pytest.mark.parametrize("policy", ["train", "stats_only", "frozen", "sync"])
def test_norm_policy(name: str, policy: str) -> None:
    model = make(name, norm=policy)
    batch_norms = [m for m in norms(model) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    affine = [p for m in norms(model) for p in m.parameters(recurse=False)]
    before = [m.running_mean.clone() for m in batch_norms]
    for _ in range(2):
        assert all(p.requires_grad == (policy in ("train", "sync")) for p in affine)
        assert all(m.training == (policy != "frozen") for m in norms(model))
        model.eval()
        assert not any(m.training for m in norms(model))
        model.train()
    model(image(2, 3, 64, 96))
    moved = [not torch.equal(b, m.running_mean) for b, m in zip(before, batch_norms, strict=True)]
    assert all(m == (policy != "frozen") for m in moved)


def test_sync_without_other_devices_computes_the_same(name: str) -> None:
    plain, sync = make(name), make(name, norm="sync")
    assert list(plain.state_dict()) == list(sync.state_dict())
    batch = image(2, 3, 64, 96)
    torch.testing.assert_close(drawn(plain, batch).logits, drawn(sync, batch).logits)
    torch.testing.assert_close(plain.eval()(batch).logits, sync.eval()(batch).logits)


@pytest.mark.parametrize("unknown", [False, True])
def test_growing_with_random_changes_no_old_logit(name: str, unknown: bool) -> None:
    model = make(name).eval()
    batch = image(1, 3, 64, 96)
    with torch.no_grad():
        if unknown:
            model.add_unknown()
        old = model(batch)
        model.grow_head(2, "random", torch.Generator().manual_seed(3))
        new = model(batch)
    assert new.logits.shape[1] == CLASSES + 2 + unknown
    assert model.num_classes == new.num_classes == CLASSES + 2
    torch.testing.assert_close(new.logits[:, :CLASSES], old.logits[:, :CLASSES])
    torch.testing.assert_close(new.to_classes(), new.logits[:, : CLASSES + 2])
    if unknown:
        torch.testing.assert_close(new.logits[:, -1], old.logits[:, -1])
        assert new.extra == "unknown"
    fresh = new.logits[:, CLASSES : CLASSES + 2]
    assert fresh.std() > 0
    assert not torch.equal(fresh[:, 0], fresh[:, 1])


@pytest.mark.parametrize("unknown", [False, True])
def test_growing_from_background_shares_its_mass(name: str, unknown: bool) -> None:
    model = make(name).eval()
    batch = image(1, 3, 64, 96)
    with torch.no_grad():
        if unknown:
            model.add_unknown()
        old = model(batch).logits.softmax(1)
        model.grow_head(3, "background")
        new = model(batch).logits.softmax(1)
    both = new[:, 0] + new[:, CLASSES : CLASSES + 3].sum(1)
    torch.testing.assert_close(both, old[:, 0])
    torch.testing.assert_close(new[:, 1:CLASSES], old[:, 1:CLASSES])
    torch.testing.assert_close(new[:, 0], new[:, CLASSES])


def test_growing_from_unknown_copies_it(name: str) -> None:
    model = make(name).eval()
    batch = image(1, 3, 64, 96)
    with torch.no_grad():
        model.add_unknown()
        model.add_unknown()
        old = model(batch)
        assert old.logits.shape[1] == CLASSES + 1
        assert old.to_classes().shape[1] == CLASSES
        model.grow_head(2, "unknown")
        new = model(batch)
    torch.testing.assert_close(new.logits[:, :CLASSES], old.logits[:, :CLASSES])
    for output in (CLASSES, CLASSES + 1, CLASSES + 2):
        torch.testing.assert_close(new.logits[:, output], old.logits[:, CLASSES])


@pytest.mark.parametrize("init", ["random", "background", "unknown"])
def test_every_head_grows_and_trains(name: str, init: Any) -> None:
    model = make(name)
    classes = [h.name for h in model(image(2, 3, 64, 96)).heads if h.target == "classes"]
    assert len(model.classifiers()) == 1 + len(classes)
    model.grow_head(2, init)
    output = model(image(2, 3, 64, 96))
    assert all(h.logits.shape[1] == CLASSES + 2 for h in output.heads if h.target == "classes")
    loss_of(output).backward()
    for conv in (c for classifier in model.classifiers().values() for c in convolutions(classifier)):
        assert conv.out_channels == conv.weight.shape[class_dim(conv)] == CLASSES + 2
        assert conv.weight.grad.movedim(class_dim(conv), 0).flatten(1).any(1).all()


def test_layout_rebuilds_a_grown_network(name: str) -> None:
    model = make(name)
    assert model.layout() == {}
    model.add_unknown()
    model.grow_head(2, "background")
    for stored in (model, model.deployed()):
        twin = make(name, CLASSES + 2, stored.layout())
        twin.load_state_dict(stored.state_dict())
        batch = image(1, 3, 64, 96)
        a, b = stored.eval()(batch), twin.eval()(batch)
        torch.testing.assert_close(a.logits, b.logits)
        assert a.extra == b.extra == "unknown"


def test_bf16_autocast(name: str) -> None:
    model = randomise_norms(make(name))
    batch = image(2, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        loss = loss_of(output)
    loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        full = model.eval()(batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch).logits.float()
    assert (half - full).norm() < 0.1 * full.norm()


def test_saved_and_loaded_is_equal(name: str, tmp_path: Path) -> None:
    model = randomise_norms(make(name)).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(tmp_path / "m.safetensors"))
    torch.manual_seed(9)
    twin = build_model({"name": name, **MODELS.get(name).tiny()}, CLASSES).eval()
    batch = image(1, 3, 64, 96)
    with torch.no_grad():
        assert not torch.equal(model(batch).logits, twin(batch).logits)
        twin.load_state_dict(load_file(str(tmp_path / "m.safetensors")))
        assert torch.equal(model(batch).logits, twin(batch).logits)


def test_same_seed_builds_the_same_network(name: str) -> None:
    a, b = make(name).state_dict(), make(name).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_param_groups_hold_every_trainable_parameter_once(name: str) -> None:
    model = make(name, head_lr_factor=10.0)
    prefix = model.encoder_prefix
    next(iter(model.parameters())).requires_grad_(False)
    groups = model.param_groups()
    grouped = [id(p) for g in groups for p in g.params]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in groups:
        for parameter in group.params:
            assert group.lr_factor == (1.0 if names[id(parameter)].startswith(prefix) else 10.0)
            assert group.decay == (parameter.ndim > 1)
    assert len({g.name for g in groups}) == len(groups)


def test_gradients_reach_every_parameter(name: str) -> None:
    model = make(name)
    loss_of(model(image(3, 3, 64, 96))).backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []


def test_a_batch_of_one_trains(name: str) -> None:
    model = make(name)
    loss_of(model(image(1, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_channels_last_gives_the_same(name: str) -> None:
    model = randomise_norms(make(name))
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = image(2, 3, 64, 96)
    a, b = drawn(model, batch), drawn(twin, batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-3, atol=1e-3)
    assert all(s.is_contiguous(memory_format=torch.channels_last) for s in b.stages)


def test_deployed_copy_predicts_the_same_with_less(name: str) -> None:
    model = randomise_norms(make(name)).eval()
    small = model.deployed()
    batch = image(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(batch).logits, small(batch).logits)
    dropped = set(model.state_dict()) - set(small.state_dict())
    assert set(small.state_dict()) <= set(model.state_dict())
    assert all(key.split(".")[0] in model.training_only for key in dropped)
    loss_of(small.train()(image(2, 3, 64, 96))).backward()
    assert all(p.grad is not None for p in small.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_deployed_module_answers_as_the_network(name: str, size: tuple[int, int]) -> None:
    model = randomise_norms(make(name)).eval()
    model.add_unknown()
    batch = image(2, 3, *size)
    with torch.no_grad():
        output = model(batch)
        torch.testing.assert_close(Deployed(model)(batch), output.upsample(output.to_classes()))


@pytest.mark.slow
def test_onnx_file_answers_as_the_network(name: str, tmp_path: Path) -> None:
    model = randomise_norms(make(name)).eval()
    model.add_unknown()
    labels = LabelSpace("five", tuple("abcde"), tuple((i, i, i) for i in range(CLASSES)), tuple(range(CLASSES)))
    if model.not_exported:
        with pytest.raises(ExportError, match=model.not_exported):
            export(model, labels, tmp_path / "m.onnx", Export(size=(70, 90), fixed_size=True))
        return
    fixed, sizes = model.fixed_size_graph, (*SIZES, (70, 90), (128, 64))
    if fixed:
        sizes = ((70, 90),)
        with pytest.raises(ExportError, match="--fixed-size"):
            export(model, labels, tmp_path / "m.onnx", Export(gives="both", size=(70, 90)))
    export(model, labels, tmp_path / "m.onnx", Export(gives="both", size=(70, 90), fixed_size=fixed))
    session = open_session(tmp_path / "m.onnx")
    for size in sizes:
        batch = image(3, 3, *size)  # not the number of images of the export, nor its size where that is free
        logits, ids = session.run(["logits", "ids"], {"image": batch.numpy()})
        with torch.no_grad():
            output = model(batch)
            wanted = output.upsample(output.to_classes())
        torch.testing.assert_close(torch.from_numpy(logits), wanted, atol=1e-5, rtol=1e-4)
        assert (torch.from_numpy(ids) == wanted.argmax(1)).float().mean() > 0.999
