import json
from pathlib import Path

import pytest

from clapkit.config import CONFIGS, EmbedConfig, PrepareConfig, TrainConfig, resolve
from clapkit.errors import ConfigError, UnknownNameError


def test_the_contract_has_its_defaults() -> None:
    config = resolve(TrainConfig, {})
    assert (config.batch_size, config.epochs, config.lr, config.clip_grad) == (32, 20, 1e-3, 1.0)
    assert (config.loss, config.keep_best, config.embedding_dim, config.positives) == ("infonce", "t2a_R@1", 512, "caption")
    assert resolve(PrepareConfig, {}).check == "decode"
    assert resolve(EmbedConfig, {}).store == "fp16"


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('loss = "svr"\nbatch-size = 16\nlr = 1\noptions = ["alpha=0.5"]\n')
    config = resolve(TrainConfig, {"config": tmp_path / "c.toml", "batch_size": 8, "epochs": None})
    assert (config.loss, config.batch_size, config.lr, config.epochs) == ("svr", 8, 1.0, 20)
    assert config.options == ("alpha=0.5",)


def test_a_run_repeats_with_its_run_json_but_not_into_its_directory(tmp_path: Path) -> None:
    first = resolve(TrainConfig, {"loss": "siglip", "name": "one", "seed": 7, "options": ["audio.mask=false"]})
    (tmp_path / "run.json").write_text(json.dumps({"config": first.resolved()}))
    again = resolve(TrainConfig, {"config": tmp_path / "run.json"})
    assert again.identity() == first.identity()
    assert again.name is None


def test_an_unknown_key_in_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("batchsize = 16\n")
    with pytest.raises(UnknownNameError, match="unknown key in .*c.toml: 'batchsize': did you mean 'batch_size'"):
        resolve(TrainConfig, {"config": tmp_path / "c.toml"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('lr = "fast"\n', "--lr 'fast': expected float"),
        ("epochs = true\n", "--epochs True: expected int"),
        ('radius = "adptive"\n', "--radius 'adptive': expected one of .*; did you mean 'adaptive'"),
        ("lr = = 3", "cannot be read .*expected TOML"),
    ],
)
def test_a_bad_value_in_the_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve(TrainConfig, {"config": tmp_path / "c.toml"})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--config nowhere.toml: cannot be read"):
        resolve(TrainConfig, {"config": Path("nowhere.toml")})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_survives_json(name: str) -> None:
    config = resolve(CONFIGS[name], {})
    assert json.loads(json.dumps(config.resolved())) == config.resolved()
    assert set(config.identity()) < set(config.resolved())
