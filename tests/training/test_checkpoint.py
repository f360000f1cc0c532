from pathlib import Path

import pytest
import torch
from torch import nn

from clapkit.errors import CheckpointError
from clapkit.training.checkpoint import (
    find_checkpoint,
    generator_state,
    load_checkpoint,
    restore_generators,
    save_checkpoint,
)


def modules(width: int = 3) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(width, 2), nn.Linear(1, 1)


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    encoder, objective = modules()
    save_checkpoint(tmp_path / "last", encoder=encoder, objective=objective, state={"step": 7, "generators": generator_state()})
    expected = torch.rand(3)
    other, loss = modules()
    state = load_checkpoint(tmp_path / "last", encoder=other, objective=loss)
    assert state["step"] == 7
    assert torch.equal(other.weight, encoder.weight)
    assert torch.equal(loss.weight, objective.weight)
    restore_generators(state["generators"])
    assert torch.equal(torch.rand(3), expected)


def test_a_kill_at_any_moment_of_a_replacement_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, objective = modules()
    last = tmp_path / "last"
    calls = 0

    def saved(step: int) -> None:
        save_checkpoint(last, encoder=encoder, objective=objective, state={"step": step})

    def loaded() -> int:
        folder = find_checkpoint(last)
        assert folder is not None
        return int(load_checkpoint(folder, encoder=encoder, objective=objective)["step"])

    real = Path.rename
    saved(1)
    for survive in (0, 1):
        calls = 0

        def dying(self: Path, target: Path, survive: int = survive) -> Path:
            nonlocal calls
            calls += 1
            if calls > survive:
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            saved(2)
        monkeypatch.setattr(Path, "rename", real)
        assert loaded() == 1 + survive  # before the first rename the old one counts, after it the complete new one
    saved(3)
    assert loaded() == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "last") is None


@pytest.mark.parametrize("name", ["model.safetensors", "objective.safetensors", "state.pt"])
def test_a_corrupt_file_is_named(name: str, tmp_path: Path) -> None:
    encoder, objective = modules()
    save_checkpoint(tmp_path / "last", encoder=encoder, objective=objective, state={"step": 1})
    content = (tmp_path / "last" / name).read_bytes()
    (tmp_path / "last" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read .*restore it or start again"):
        load_checkpoint(tmp_path / "last", encoder=encoder, objective=objective)


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    encoder, objective = modules()
    save_checkpoint(tmp_path / "last", encoder=encoder, objective=objective, state={})
    wider, _ = modules(width=4)
    with pytest.raises(CheckpointError, match="1 tensors do not fit this configuration, first 'weight'"):
        load_checkpoint(tmp_path / "last", encoder=wider, objective=objective)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    save_checkpoint(tmp_path / "last", encoder=tied, objective=nn.Linear(1, 1), state={})
    other = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    other["b"].weight = other["a"].weight
    load_checkpoint(tmp_path / "last", encoder=other, objective=nn.Linear(1, 1))
    assert torch.equal(other["a"].weight, tied["a"].weight)
    assert other["b"].weight is other["a"].weight
