import builtins
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clapkit.config import TrainConfig, resolve
from clapkit.errors import ConfigError
from clapkit.run_dir import RunDir
from clapkit.steps.train_log import event_log, forget_after, plot_run, read_log


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


def test_a_log_is_read_up_to_a_line_that_a_kill_cut(run: RunDir) -> None:
    with run.metrics_path.open("ab") as file:
        file.write('{"step": 5, "note": "ü'.encode()[:-1])  # in the middle of a character
    assert [record["step"] for record in read_log(run.metrics_path)] == [0, 1, 2, 3, 4]
    plot_run(run)
    assert (run.plot_dir / "loss.png").is_file()


@pytest.mark.usefixtures("drawn_curves")
def test_drift_and_geometry_have_their_figures(run: RunDir) -> None:
    drift = {"step": 2, "force_cos_local": 0.5, "infonce_force_cos_local": 0.4}
    for record in (drift, {"step": 2, "modality_gap": 0.3}, {"step": 2, "mean_rho": 0.2, "temperature": 0.07}):
        run.append_metrics(record)
    plot_run(run)
    found = {path.stem for path in run.plot_dir.iterdir()}
    assert found == {"loss", "retrieval", "rho", "temperature", "drift", "geometry"}
    assert all(path.stat().st_size for path in run.plot_dir.iterdir())


def test_tensorboard_that_is_not_installed_is_named(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"--log-to tensorboard: not installed; pip install"):
        event_log(resolve(TrainConfig, {"log_to": "tensorboard"}), run, write=True).__enter__()
    with event_log(resolve(TrainConfig, {}), run, write=True) as write:
        write({"step": 1, "loss": 2.0})


def test_a_value_that_is_null_is_no_point_of_the_event_log(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *point: points.append(point), close=lambda: None)
    module = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with event_log(resolve(TrainConfig, {"log_to": "tensorboard"}), run, write=True) as write:
        write({"step": 3, "loss": 0.5, "gradient_norm": None})
    assert points == [("loss", 0.5, 3)]
