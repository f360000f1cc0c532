"""The configurations in docs/configs: every one is read by the command line's own reader and makes a run that can start."""

from pathlib import Path

import pytest

from clapkit.config import TrainConfig, resolve
from clapkit.steps.train_options import check, plugin_options

CONFIGS = sorted((Path(__file__).parent.parent / "docs" / "configs").glob("*.toml"))


def test_there_are_configurations():
    assert len(CONFIGS) >= 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_what_a_run_can_be(path):
    config = resolve(TrainConfig, {"config": path})
    check(config)
    assert plugin_options(config)["loss"] is not None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_head_of_a_configuration_names_the_command_that_uses_it(path):
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"--config docs/configs/{path.name}" in line for line in head)


def test_the_paper_is_quoted_as_we_know_it():
    for corpus in ("audiocaps", "clotho"):
        config = resolve(TrainConfig, {"config": Path(f"docs/configs/supclap-{corpus}.toml")})
        assert (config.audio_encoder, config.audio_weights) == ("ced", "mispeech/ced-base")
        assert (config.lr, config.batch_size, config.tau, config.epochs) == (5e-5, 24, 0.07, 10)
        assert (config.loss, config.radius, config.alpha, config.beta) == ("svr", "adaptive", 1.0, 0.01)
        assert config.val_split == "val"
