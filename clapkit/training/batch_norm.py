"""Batch normalisation where a process, or a forward pass, sees only a part of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clapkit.training.distributed import Processes


class _SumOverProcesses(torch.autograd.Function):
    """A sum that all processes use: the gradient of each one's part is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        total = values.clone()
        processes.sum_([total])
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        ctx.processes.sum_([total])
        return total, None


class _OverProcesses(_BatchNorm):
    """A batch norm whose mean and variance are those of the whole batch."""

    processes: Processes

    # An exchange between processes is no kernel that could be compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        values = input.to(torch.promote_types(input.dtype, torch.float32))  # [B, C, ...]
        others = [axis for axis in range(values.ndim) if axis != 1]
        count = torch.full((1,), values.numel() // values.shape[1], dtype=values.dtype, device=values.device)
        sums = self._sum(torch.cat([values.sum(others), count]))  # [C + 1]
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()  # [C]
        centred = values - _of_channels(mean, values)
        # From the differences, not from the mean of the squares, which loses all digits where the mean is large.
        variance = self._sum(centred.square().sum(others)) / count  # [C], biased
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        output = centred * _of_channels(scale, values)
        if self.bias is not None:
            output = output + _of_channels(self.bias, values)
        return output.to(input.dtype)

    def _sum(self, values: Tensor) -> Tensor:
        add_up: Any = _SumOverProcesses.apply  # typed in some versions of torch and not in others
        total: Tensor = add_up(values, self.processes)
        return total

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), share)


class _OverProcesses1d(_OverProcesses, nn.BatchNorm1d):
    pass


class _OverProcesses2d(_OverProcesses, nn.BatchNorm2d):
    pass


class _OverProcesses3d(_OverProcesses, nn.BatchNorm3d):
    pass


_KINDS: dict[type[nn.Module], type[_OverProcesses]] = {
    nn.BatchNorm1d: _OverProcesses1d,
    nn.BatchNorm2d: _OverProcesses2d,
    nn.BatchNorm3d: _OverProcesses3d,
}


def synchronise_batch_norm(module: nn.Module, processes: Processes) -> None:
    """Let every batch norm in a module normalise over the batch of all processes; nothing to do for one.

    The modules stay the same objects, with the same names, parameters and statistics: they only change their class. In
    evaluation nothing is exchanged. Processes may bring parts of different sizes.

    Args:
        module: the encoder, on its device.
        processes: that run it at the same time.
    """
    if processes.size == 1:
        return
    for part in module.modules():
        kind = _KINDS.get(type(part))
        if kind is not None:
            part.__class__ = kind
            part.processes = processes  # type: ignore[assignment]


def batch_norm_in_training(module: nn.Module) -> list[str]:
    """Names of the batch norms that normalise with what a forward pass sees, rather than with fixed statistics."""
    return [name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and part.training]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let batch norms normalise as in training, without taking up running statistics: for a pass that repeats another."""
    tracking = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    tracking = [part for part in tracking if part.training]
    try:
        for part in tracking:
            part.track_running_stats = False
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True


def _of_channels(values: Tensor, like: Tensor) -> Tensor:
    """Values of the channels [C], ready to be broadcast over [B, C, ...]."""
    return values.view(1, -1, *[1] * (like.ndim - 2))
