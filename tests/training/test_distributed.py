from typing import Any

import pytest
import torch
from torch import nn

from clapkit.errors import ConfigError
from clapkit.training.distributed import (
    OneProcess,
    buckets,
    join,
    launched,
    leave,
    local_device,
    seed_process,
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_there_is_one_process(alone: pytest.MonkeyPatch) -> None:
    assert launched() == (0, 1)
    assert isinstance(join("cuda"), OneProcess)  # no GPU is touched
    assert local_device("cuda") == "cuda"
    leave()  # nothing to leave is no error


def test_torchrun_says_who_a_process_is(alone: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        alone.setenv(name, value)
    alone.setattr(torch.cuda, "device_count", lambda: 2)
    assert launched() == (5, 8)
    assert local_device("cuda") == "cuda:1"
    assert local_device("cpu") == "cpu"
    alone.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"process 2 on this machine finds 1 GPUs; pass torchrun --nproc-per-node 1$"):
        local_device("cuda")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 and WORLD_SIZE=2: expected a rank below the size; start with torchrun"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, r"RANK='one': expected a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, r"RANK='-1': expected a whole number"),
        ({"WORLD_SIZE": "2"}, r"RANK='': expected a whole number; start with torchrun, or unset RANK and WORLD_SIZE"),
        ({"RANK": "0"}, r"WORLD_SIZE='': expected a whole number"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(
    alone: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        alone.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        launched()


def test_one_process_exchanges_nothing() -> None:
    processes = OneProcess()
    leaf = torch.ones(2, 3, requires_grad=True)
    assert not processes.gather(leaf).requires_grad
    assert processes.gather(leaf).data_ptr() == leaf.data_ptr()
    numbers = [torch.tensor([1.0, 2.0])]
    for exchange in (processes.sum_, processes.mean_, processes.copy_):
        exchange(numbers)
    assert numbers[0].tolist() == [1.0, 2.0]
    assert processes.broadcast("a") == "a"
    assert processes.gather_values("a") == ["a"]
    assert (processes.any(True), processes.any(False)) == (True, False)
    processes.barrier()


def test_buckets_are_full_of_one_type_and_lose_nothing() -> None:
    tensors = [torch.zeros(n, dtype=dtype) for n in (3, 2, 9, 1, 1) for dtype in (torch.float32, torch.int64)]
    made = list(buckets(tensors, limit=20))
    # float32, 4 bytes each: 3 + 2 make 20 bytes, 9 is larger than a bucket, 1 + 1 are left; int64 takes twice as much.
    assert [[t.numel() for t in bucket] for bucket in made] == [[3, 2], [9], [1, 1], [3], [2], [9], [1, 1]]
    assert all(len({t.dtype for t in bucket}) == 1 for bucket in made)
    assert list(buckets([])) == []


def test_no_two_processes_or_steps_draw_the_same() -> None:
    def drawn(*who: int, **when: int) -> tuple[float, ...]:
        seed_process(*who, **when)
        return tuple(nn.functional.dropout(torch.ones(64)).tolist())

    assert drawn(0, 1) == drawn(0, 1)
    assert len({drawn(0, rank, step=step) for rank in range(4) for step in range(4)} | {drawn(1, 0)}) == 17


def test_processes_exchange_tensors_and_values(two_processes: dict[str, list[dict[str, Any]]]) -> None:
    first, second = two_processes["exchange"]
    assert (first["who"], second["who"]) == ((0, 2, True), (1, 2, False))
    for seen in (first, second):
        assert seen["gathered"].tolist() == [[0.0], [0.0], [1.0], [1.0]]
        assert not seen["gathered"].requires_grad
        assert seen["gathered_half"].tolist() == [0.5, 1.5]
        assert seen["gathered_half"].dtype == torch.bfloat16
        assert seen["gathered_flags"].tolist() == [False, True]
        floats, whole, half = seen["summed"]
        assert floats.tolist() == [3.0, 3.0, 3.0]  # 1 + 2
        assert whole.tolist() == [[1]]  # 0 + 1
        assert half.tolist() == [[3.0, 3.0], [3.0, 3.0]]
        assert (whole.dtype, half.dtype) == (torch.int64, torch.bfloat16)
        assert seen["averaged"].item() == 1.0  # (0 + 2) / 2
        assert [tensor.tolist() for tensor in seen["copied"]] == [[0, 7], [True], 0.5]
        assert seen["broadcast"] == {"from": 0}
        assert seen["values"] == [{"rank": 0}, {"rank": 1}]
        assert seen["any"] == (True, False)


def test_rows_of_different_shape_are_refused_everywhere(two_processes: dict[str, list[dict[str, Any]]]) -> None:
    messages = [seen["ragged"] for seen in two_processes["exchange"]]
    assert messages[0] == messages[1]
    assert messages[0].startswith("process 1 of 2 has rows [3, 3], process 0 has [2, 3]; expected the same on all; pass a")
