"""Several processes that train one model, started by ``torchrun``: who they are, and how they exchange tensors.

Nothing here carries gradients. The loop gathers embeddings as leaves and sums gradients itself (``clapkit.training.loop``),
so that the scale of a gradient is written down in one place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from clapkit.errors import ConfigError, ProcessError, ShapeError

BUCKET_BYTES = 25 * 2**20
"""Gradients travel in pieces of this size: large enough that latency does not count, small enough to be copied."""
TIMEOUT = timedelta(hours=2)
"""Patience with a process that is busy, for example decoding; one that died is noticed by ``torchrun`` at once."""
_MOST_DIMENSIONS = 7


class Processes(Protocol):
    """The processes of a run. Every method is a collective: all of them call it, in the same order.

    Each raises ProcessError where another process has ended.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        is_first: whether this one writes and prints.
    """

    rank: int
    size: int
    is_first: bool

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes [size * n, ...] in the order of the ranks, without gradient, from [n, ...] of each.

        Raises:
            ShapeError: on every process, if the shapes differ.
        """
        ...

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the processes; half precision is added up in float32."""
        ...

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its mean over the processes."""
        ...

    def copy_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by that of the first process."""
        ...

    def broadcast(self, value: Any) -> Any:
        """The value of the first process: anything that pickles. Those of the others are not looked at."""
        ...

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of the ranks."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        ...

    def barrier(self) -> None:
        """Wait until all processes are here."""
        ...


class OneProcess:
    """A run without others; exchanges nothing."""

    rank, size, is_first = 0, 1, True

    def gather(self, rows: Tensor) -> Tensor:
        """The rows themselves, without gradient."""
        return rows.detach()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to add."""

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to average."""

    def copy_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to copy."""

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value

    def gather_values(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def barrier(self) -> None:
        """Nobody to wait for."""


class TorchProcesses:
    """The processes of ``torch.distributed``, whose group has been joined.

    Args:
        device: where tensors have to be to travel: the GPU of this process for nccl, the processor for gloo.
    """

    def __init__(self, device: torch.device) -> None:
        import torch.distributed as dist

        self._dist, self._device = dist, device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.is_first = self.rank == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchProcesses:
        """Itself: the batch norms of a copied encoder belong to the same processes."""
        return self

    def gather(self, rows: Tensor) -> Tensor:
        """See ``Processes``."""
        rows = rows.detach()
        self._check_equal_shapes(rows)
        # As bytes, which every backend can carry, whatever the type of the numbers.
        content = rows.to(self._device).contiguous().reshape(-1).view(torch.uint8)
        parts = [part.view(rows.dtype).view(rows.shape) for part in self._all_gather(content)]
        return torch.cat(parts).to(rows.device)

    def _check_equal_shapes(self, rows: Tensor) -> None:
        shape = list(rows.shape) + [-1] * (_MOST_DIMENSIONS - rows.ndim)
        mine = torch.tensor(shape, device=self._device)
        shapes = [[n for n in other.tolist() if n >= 0] for other in self._all_gather(mine)]
        odd = [rank for rank, other in enumerate(shapes) if other != shapes[0]]
        if odd:
            raise ShapeError(
                f"process {odd[0]} of {self.size} has rows {shapes[odd[0]]}, process 0 has {shapes[0]}; expected the same on "
                "all; pass a --batch-size that is a multiple of the number of processes"
            )

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _all_here():
            self._dist.all_gather(parts, tensor)
        return parts

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See ``Processes``."""
        for bucket in buckets(tensors):
            flat = self._flat(bucket)
            with _all_here():
                self._dist.all_reduce(flat)
            _unpack(flat, bucket)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """See ``Processes``."""
        self.sum_(tensors)
        for tensor in tensors:
            tensor.div_(self.size)

    def copy_(self, tensors: Sequence[Tensor]) -> None:
        """See ``Processes``."""
        for bucket in buckets(tensors):
            flat = self._flat(bucket)
            with _all_here():
                self._dist.broadcast(flat.view(torch.uint8), src=0)
            _unpack(flat, bucket)

    def _flat(self, bucket: Sequence[Tensor]) -> Tensor:
        flat = torch.cat([tensor.detach().reshape(-1).to(self._device) for tensor in bucket])
        # Half precision would lose small parts of a sum.
        return flat.float() if flat.is_floating_point() and flat.element_size() < 4 else flat

    def broadcast(self, value: Any) -> Any:
        """See ``Processes``."""
        box = [value if self.is_first else None]
        with _all_here():
            self._dist.broadcast_object_list(box, src=0, device=self._device)
        return box[0]

    def gather_values(self, value: Any) -> list[Any]:
        """See ``Processes``."""
        values: list[Any] = [None] * self.size
        with _all_here():
            self._dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """See ``Processes``."""
        votes = torch.tensor(int(flag), device=self._device)
        with _all_here():
            self._dist.all_reduce(votes)
        return bool(votes)

    def barrier(self) -> None:
        """See ``Processes``."""
        self.any(False)


@contextmanager
def _all_here() -> Iterator[None]:
    """An exchange, which fails where another process has gone: that one has said why, this one has only waited for it.

    Raises:
        ProcessError: instead of what the backend says.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no class for it, nccl has.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise ProcessError(
            f"another process of this training has ended ({str(error).splitlines()[0]}); look for its own message, correct "
            "that and go on with --resume"
        ) from error


def buckets(tensors: Sequence[Tensor], *, limit: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """Tensors of one type at a time, up to ``limit`` bytes together; one that is larger comes alone."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        used = 0
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            if bucket and used + tensor.nbytes > limit:
                yield bucket
                bucket, used = [], 0
            bucket.append(tensor)
            used += tensor.nbytes
        yield bucket


def _unpack(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, content in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(content.view(tensor.shape))


def launched() -> tuple[int, int]:
    """Rank of this process and number of processes, as ``torchrun`` says in the environment; (0, 1) without it.

    Raises:
        ConfigError: if what the environment says makes no sense.
    """
    said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if not any(said.values()):
        return 0, 1
    rank, size = _whole_number("RANK"), _whole_number("WORLD_SIZE")
    if not rank < size:
        raise ConfigError(
            f"RANK={rank} and WORLD_SIZE={size}: expected a rank below the size; start with torchrun, or unset both"
        )
    return rank, size


def _whole_number(name: str) -> int:
    value = os.environ.get(name, "")
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{name}={value!r}: expected a whole number; start with torchrun, or unset RANK and WORLD_SIZE")
    return int(value)


def local_device(name: str) -> str:
    """The device of this process: ``cuda`` is one GPU for each of several processes on a machine.

    Raises:
        ConfigError: if there are more processes than GPUs.
    """
    if name != "cuda" or launched()[1] == 1:
        return name
    number, count = _whole_number("LOCAL_RANK"), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(
            f"--device cuda: process {number + 1} on this machine finds {count} GPUs; pass torchrun --nproc-per-node {count}"
        )
    return f"cuda:{number}"


def join(device: str) -> Processes:
    """Meet the other processes; gives ``OneProcess`` without any.

    Args:
        device: of the modules of this process, from ``local_device``.

    Raises:
        ConfigError: if what the environment says makes no sense.
    """
    if launched()[1] == 1:
        return OneProcess()
    import torch.distributed as dist

    if device.startswith("cuda"):
        own = torch.device(device)
        torch.cuda.set_device(own)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=own)
        return TorchProcesses(own)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    return TorchProcesses(torch.device("cpu"))


def leave() -> None:
    """Part from the other processes, if there are any."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def seed_process(seed: int, rank: int, *, step: int = 0) -> None:
    """Give torch's generators of this process a state of its own, so that no two draw the same dropout.

    Args:
        seed: of the run.
        rank: of the process.
        step: at which the process starts.
    """
    # Numbers that are close seed generators that are not: torch's Mersenne twister scrambles them.
    torch.manual_seed((seed + 1_000_003 * (rank + 1) + 998_244_353 * step) % 2**63)
