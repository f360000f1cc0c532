import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clapkit.encoders.fingerprint import CONFIG, WEIGHTS, model_fingerprint
from clapkit.errors import CheckpointError
from clapkit.steps import fingerprints
from clapkit.steps.fingerprints import known_fingerprint

LONG_AGO_NS = 1_000_000_000_000_000_000


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is far ahead, so that files that were just written count as old."""
    monkeypatch.setattr(fingerprints, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + 60_000_000_000))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / CONFIG).write_text('{"clapkit_model": 1}')
    return folder


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models whose fingerprints were computed, in order."""
    paths: list[Path] = []

    def compute(path: Path) -> str:
        paths.append(path)
        return model_fingerprint(path)

    monkeypatch.setattr(fingerprints, "model_fingerprint", compute)
    return paths


def of_transformers(folder: Path) -> Path:
    folder.mkdir()
    (folder / CONFIG).write_text('{"model_type": "clap"}')
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    for name in ("one.safetensors", "two.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_text(name)
    return folder


def wait_for_tick(folder: Path) -> None:
    """Wait until the clock of the file system has gone on."""
    probe = folder / "probe"
    probe.touch()
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        probe.touch()


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.pt").write_bytes(b"weights")
    return folder / "model.pt"


@pytest.mark.usefixtures("settled")
def test_a_fingerprint_is_computed_once(model: Path, computed: list[Path], tmp_path: Path) -> None:
    expected = model_fingerprint(model)
    assert [known_fingerprint(model, tmp_path / "cache") for _ in range(3)] == [expected] * 3
    assert computed == [model]


@pytest.mark.usefixtures("settled")
def test_a_relative_path_and_an_absolute_one_are_one_model(
    model: Path, computed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert known_fingerprint(Path("model"), tmp_path / "cache") == known_fingerprint(model, tmp_path / "cache")
    assert computed == [Path("model")]


@pytest.mark.usefixtures("settled")
def test_two_models_do_not_share_a_fingerprint(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / WEIGHTS).write_bytes(b"WEIGHTS")
    (other / CONFIG).write_bytes((model / CONFIG).read_bytes())
    for folder in (model, other, model, other):
        assert known_fingerprint(folder, tmp_path / "cache") == model_fingerprint(folder)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_of_another_size_is_read_again(model: Path, computed: list[Path], tmp_path: Path, name: str) -> None:
    known_fingerprint(model, tmp_path / "cache")
    times = (model / name).stat()
    with (model / name).open("ab") as file:
        file.write(b" ")
    os.utime(model / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known_fingerprint(model, tmp_path / "cache") == model_fingerprint(model)
    assert len(computed) == 2


@pytest.mark.usefixtures("settled")
def test_a_file_of_the_same_size_and_another_time_is_read_again(model: Path, computed: list[Path], tmp_path: Path) -> None:
    known_fingerprint(model, tmp_path / "cache")
    (model / WEIGHTS).write_bytes(b"WEIGHTS")
    os.utime(model / WEIGHTS, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert known_fingerprint(model, tmp_path / "cache") == model_fingerprint(model)
    assert len(computed) == 2


@pytest.mark.usefixtures("settled")
def test_a_file_that_was_replaced_keeping_size_and_time_is_read_again(model: Path, tmp_path: Path) -> None:
    os.utime(model / WEIGHTS, ns=(LONG_AGO_NS, LONG_AGO_NS))
    before = known_fingerprint(model, tmp_path / "cache")
    wait_for_tick(tmp_path)
    (model / WEIGHTS).write_bytes(b"WEIGHTS")
    os.utime(model / WEIGHTS, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert known_fingerprint(model, tmp_path / "cache") == model_fingerprint(model) != before


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "name", ["one.safetensors", "two.safetensors", "tokenizer.json", "preprocessor_config.json", "vocab.json"]
)
def test_every_file_of_a_folder_of_transformers_counts(tmp_path: Path, name: str) -> None:
    folder = of_transformers(tmp_path / "model")
    before = known_fingerprint(folder, tmp_path / "cache")
    (folder / name).write_text("another content, longer than the first")  # the clock may not have ticked
    assert known_fingerprint(folder, tmp_path / "cache") == model_fingerprint(folder) != before


@pytest.mark.usefixtures("settled")
def test_a_checkpoint_file_counts_with_the_tokenizer_beside_it(tmp_path: Path, computed: list[Path]) -> None:
    path = checkpoint(tmp_path / "model")
    before = known_fingerprint(path, tmp_path / "cache")
    assert known_fingerprint(path, tmp_path / "cache") == before
    (path.parent / "other.pt").write_bytes(b"not read")
    assert known_fingerprint(path, tmp_path / "cache") == before
    assert len(computed) == 1
    (path.parent / "tokenizer.json").unlink()
    assert known_fingerprint(path, tmp_path / "cache") == model_fingerprint(path) != before


@pytest.mark.parametrize("make", [of_transformers, checkpoint])
def test_all_files_that_a_fingerprint_reads_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "model")
    read: set[str] = set()
    open_file = Path.open

    def spy(self: Path, *args: Any, **kwargs: Any) -> Any:
        read.add(os.fspath(self))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", spy)
    model_fingerprint(path)
    watched = fingerprints._state(path)
    assert read <= watched.keys()
    assert len(read) >= 2


def test_what_was_just_written_is_not_remembered(
    model: Path, computed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest_ns = max(path.stat().st_ctime_ns for path in model.iterdir())
    monkeypatch.setattr(fingerprints, "time", SimpleNamespace(time_ns=lambda: newest_ns + 1_000_000_000))
    for _ in range(2):
        assert known_fingerprint(model, tmp_path / "cache") == model_fingerprint(model)
    assert len(computed) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("settled")
def test_a_model_that_changes_while_it_is_read_is_not_remembered(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(path: Path) -> str:
        fingerprint = model_fingerprint(path)
        (path / WEIGHTS).write_bytes(b"new weights")
        return fingerprint

    monkeypatch.setattr(fingerprints, "model_fingerprint", compute)
    known_fingerprint(model, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/fingerprints/*"))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "damage",
    [
        lambda note: "",
        lambda note: "nonsense",
        lambda note: "[" * 100_000,
        lambda note: "[]",
        lambda note: json.dumps(note)[:-5],
        lambda note: json.dumps({key: value for key, value in note.items() if key != "files"}),
        lambda note: json.dumps(note | {"fingerprint": "f" * 63}),
        lambda note: json.dumps(note | {"fingerprint": None}),
        lambda note: json.dumps(note | {"clapkit": "0.0.1"}),
        lambda note: json.dumps(note | {"files": {}}),
    ],
)
def test_a_damaged_note_is_computed_anew(
    model: Path, computed: list[Path], tmp_path: Path, damage: Callable[[dict[str, Any]], str]
) -> None:
    expected = known_fingerprint(model, tmp_path / "cache")
    (note_path,) = tmp_path.glob("cache/fingerprints/*.json")
    note_path.write_text(damage(json.loads(note_path.read_text())))
    assert [known_fingerprint(model, tmp_path / "cache") for _ in range(2)] == [expected] * 2
    assert len(computed) == 2  # and is whole again


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    assert known_fingerprint(model, tmp_path / "cache") == model_fingerprint(model)
    assert (tmp_path / "cache").read_text() == "a file, where a folder should be"


@pytest.mark.usefixtures("settled")
def test_a_path_that_is_no_text_is_remembered_too(tmp_path: Path, computed: list[Path]) -> None:
    try:
        path = checkpoint(tmp_path / os.fsdecode(b"model\xff"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert known_fingerprint(path, tmp_path / "cache") == known_fingerprint(path, tmp_path / "cache")
    assert len(computed) == 1


def test_what_is_no_model_is_an_error(model: Path, tmp_path: Path) -> None:
    (model / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read \(No such file or directory\)"):
        known_fingerprint(model, tmp_path / "cache")
    (model / CONFIG).write_text('{"model_type": "clap"}')
    (model / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no index of weights"):
        known_fingerprint(model, tmp_path / "cache")


def test_torch_and_the_decoders_of_audio_are_not_loaded() -> None:
    script = (
        "import sys, clapkit.steps.inputs\n"
        "print(sorted({'torch', 'pandas', 'soundfile', 'soxr', 'pyarrow', 'multiprocessing'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
