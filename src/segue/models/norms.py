"""Batch norm that accepts one value a channel, and batch norm whose statistics are those of all devices."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormLike

from segue.ops.precision import full


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also trains where a channel has a single value: a globally pooled map of a batch of one.

    One value has no variance (torch raises there). Seen as one sample of a stream it still moves the running mean and
    variance (exponentially weighted, Finch 2009, section 9; with ``momentum=None`` Welford's cumulative form),
    and the layer then normalises with these as in evaluation. Affine parameters train as ever.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) to the same shape."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return single_value_norm(self, x)
        return super().forward(x)


def single_value_norm(norm: BatchNormLike, x: Tensor) -> Tensor:
    """Normalise (1,C,1,1) with running statistics after they have taken in this one value."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or norm.num_batches_tracked is None:
        raise ValueError("batch norm without running statistics cannot train on one value a channel")
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        seen = int(norm.num_batches_tracked) if norm.momentum is None else 0
        rate = norm.momentum if norm.momentum is not None else 1 / seen
        delta = x.detach().flatten().to(mean) - mean
        mean.add_(delta, alpha=rate)
        if seen == 2:
            var.zero_()  # cumulative: the value a reset left there is no observation
        if seen != 1:
            var.addcmul_(delta, delta, value=rate).mul_(1 - rate)
    # Copies: another forward pass of the same graph updates the buffers before backward reads them.
    return F.batch_norm(x, mean.clone(), var.clone(), norm.weight, norm.bias, False, 0.0, norm.eps)


class SyncBatchNorm(nn.SyncBatchNorm):
    """Statistics over the batches of all devices: torch's kernels on a GPU, the same equations in plain torch on a CPU.

    torch's module refuses CPU tensors, so runs with the gloo backend would have no synchronised norm at all. ``drop``
    and ``act`` follow, for timm's norm layers that carry an activation.
    """

    def __init__(self, like: BatchNormLike) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self._parameters, self._buffers = like._parameters, like._buffers
        self.training = like.training
        self.drop = getattr(like, "drop", nn.Identity())
        self.act = getattr(like, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) to the same shape."""
        out: Tensor = self.act(self.drop(self._normalise(x)))
        return out

    def _normalise(self, x: Tensor) -> Tensor:
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self.training and world > 1 and not x.is_cuda:
            return self._over_ranks(x)
        if self.training and world == 1 and x.numel() == x.shape[1]:
            return single_value_norm(self, x)
        out: Tensor = super().forward(x)
        return out

    def _over_ranks(self, x: Tensor) -> Tensor:
        values, shape = full(x), (1, self.num_features, 1, 1)
        count = values.new_tensor([values.numel() / self.num_features])
        total = _sum_over_ranks(torch.cat([values.sum((0, 2, 3)), count]))
        count, mean = total[-1].detach(), total[:-1] / total[-1]
        centred = values - mean.view(shape)
        # A second sum over ranks: E[x^2] - E[x]^2 from one would cancel in float32.
        var = _sum_over_ranks(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), var.detach() * (count / (count - 1).clamp_min(1)))
        out = centred * (var.view(shape) + self.eps).rsqrt()
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(var, rate)


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks; the gradient of a sum that every rank reads is the sum of every rank's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        out = grad.contiguous().clone()
        dist.all_reduce(out)
        return out


def _sum_over_ranks(x: Tensor) -> Tensor:
    out: Tensor = _SumOverRanks.apply(x)
    return out


def synchronise(module: nn.Module) -> nn.Module:
    """Replace every batch norm below ``module`` (or itself) by :class:`SyncBatchNorm`.

    Parameters and buffers stay the same objects under the same names. timm's norm with an activation inside keeps that
    activation (``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` silently loses it).
    """
    for name, child in module.named_children():
        setattr(module, name, synchronise(child))
    if isinstance(module, BatchNormLike) and not isinstance(module, nn.SyncBatchNorm):
        return SyncBatchNorm(module)
    return module
