"""Batch norm with one value a channel, and synchronised batch norm against one big batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from segue.models.norms import BatchNorm, SyncBatchNorm, synchronise


def test_ordinary_batches_are_torchs_batch_norm() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs(torch.randn(1, 3, 1, 1))


def test_single_values_build_up_mean_and_variance_of_their_stream() -> None:
    values = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 3 + 5
    norm = BatchNorm(2, momentum=None)
    for value in values:
        out = norm(value.view(1, 2, 1, 1))
    torch.testing.assert_close(norm.running_mean, values.mean(0))
    torch.testing.assert_close(norm.running_var, values.var(0, unbiased=False))
    expected = (values[-1] - values.mean(0)) / (values.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(out.flatten(), expected)
    assert norm.num_batches_tracked == 200


def test_single_values_with_momentum_are_exponentially_weighted() -> None:
    norm = BatchNorm(1, momentum=0.1)
    norm(torch.full((1, 1, 1, 1), 2.0))
    assert norm.running_mean.item() == pytest.approx(0.2)
    assert norm.running_var.item() == pytest.approx(0.9 * (1 + 0.1 * 2.0**2))


def test_single_value_twice_in_one_graph_has_a_gradient() -> None:
    norm = BatchNorm(2)
    x = torch.ones(1, 2, 1, 1, requires_grad=True)
    (norm(x) + norm(2 * x)).sum().backward()
    assert x.grad is not None and (x.grad > 0).all()
    assert norm.weight.grad is not None and norm.weight.grad.any()


def test_single_value_in_eval_changes_nothing() -> None:
    norm = BatchNorm(2).eval()
    before = norm.running_mean.clone()
    norm(torch.ones(1, 2, 1, 1))
    assert torch.equal(norm.running_mean, before)


def test_synchronise_keeps_tensors_names_modes_and_activations() -> None:
    timm = pytest.importorskip("timm")  # not above: the processes of the last test import this file
    encoder = timm.create_model("mobilenetv3_small_050", features_only=True)
    twin = timm.create_model("mobilenetv3_small_050", features_only=True)
    twin.load_state_dict(encoder.state_dict())
    names, parameters = list(encoder.state_dict()), [id(p) for p in encoder.parameters()]
    encoder.blocks[0].eval()
    synchronise(encoder)
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, SyncBatchNorm) for m in norms)
    assert not any(m.training for m in encoder.blocks[0].modules())
    assert norms[-1].training
    assert list(encoder.state_dict()) == names
    assert [id(p) for p in encoder.parameters()] == parameters
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(encoder.eval()(x), twin.eval()(x), strict=True):
        torch.testing.assert_close(a, b)


def batch() -> Tensor:
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 30


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    out = model(x)
    (out.square().sum() / 5).backward()
    return {
        "out": out.detach(),
        **{n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        **dict(model.named_buffers()),
    }


def worker(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else it looks its host name up
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    result = run(synchronise(network()), batch()[:2] if rank == 0 else batch()[2:])  # unequal shares
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_devices_are_one_big_batch(tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    ranks: list[dict[str, Any]] = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    whole = run(network(), batch())
    torch.testing.assert_close(torch.cat([r["out"] for r in ranks]), whole["out"])
    for name, value in whole.items():
        if name == "out":
            continue
        if "running" in name or "num" in name:
            torch.testing.assert_close(ranks[0][name], value)
            assert torch.equal(ranks[0][name], ranks[1][name])
        else:
            # atol: the bias before a norm has gradient 0, what is left of it is rounding
            torch.testing.assert_close(ranks[0][name] + ranks[1][name], value, rtol=1e-4, atol=1e-4)
