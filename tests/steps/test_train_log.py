import builtins
from pathlib import Path

import pytest

from clapkit.config import TrainConfig, resolve
from clapkit.errors import ConfigError
from clapkit.run_dir import RunDir
from clapkit.steps.train_log import event_log, forget_after, plot_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    for step in range(5):
        run.append_metrics({"step": step, "loss": 5.0 - step, "t2a_R@1": step / 10})
    return run


def test_resuming_forgets_later_steps_and_a_line_that_a_kill_cut(run: RunDir) -> None:
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "lo')
    forget_after(run, 2)
    assert [line[:10] for line in run.metrics_path.read_text().splitlines()] == ['{"step": 0', '{"step": 1', '{"step": 2']
    forget_after(run, -1)
    assert run.metrics_path.read_text() == ""


def test_only_curves_with_values_are_drawn(run: RunDir) -> None:
    plot_run(run)
    assert sorted(path.name for path in run.plot_dir.iterdir()) == ["loss.png", "retrieval.png"]  # no radius was logged


def test_tensorboard_that_is_not_installed_is_named(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"--log-to tensorboard: not installed; pip install"):
        event_log(resolve(TrainConfig, {"log_to": "tensorboard"}), run).__enter__()
    with event_log(resolve(TrainConfig, {}), run) as write:
        write({"step": 1, "loss": 2.0})
