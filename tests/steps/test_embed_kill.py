"""``embed`` killed at any moment: readers find the old table or the new one, and a run that goes on ends as if undisturbed."""

import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.encoders.dual import DualEncoder
from clapkit.index.table import open_table

RATE = 8000


class Reader(threading.Thread):
    """Opens a table again and again, and keeps every state of it that it has seen."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._is_over = folder, threading.Event()
        self.seen: list[tuple[str, str]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Read until told to stop."""
        try:
            while not self._is_over.is_set():
                found = state(self._folder)
                if not self.seen or self.seen[-1] != found:
                    self.seen.append(found)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Tell what went wrong, if something did."""
        self._is_over.set()
        self.join()
        if self.error is not None:
            raise self.error


def state(folder: Path) -> tuple[str, str]:
    """The id of a table, and everything that it holds."""
    info, table = open_table(folder, "audio")
    return info.id, json.dumps([table.rows(range(len(table))), table.vectors.tobytes().hex()])


@pytest.fixture
def call(tmp_path, processes):
    """Calls ``clapkit`` in a process of its own; gives exit code, and what was said."""
    log = tmp_path / "said.txt"

    def run(*arguments, kill_after_s=None):
        child = processes.start(*arguments, folder=tmp_path, stdout="/dev/null", stderr=log)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)
        return processes.wait(child), log.read_text()

    return run


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(60):
        write_noise(folder / f"{number:02}.wav", number)
    return folder


def write_noise(path: Path, seed: int, *, duration_s: int = 1) -> None:
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, RATE * duration_s), RATE)


def change(folder: Path, number: int) -> None:
    """Add ten sounds, change, rename and delete some."""
    for place in range(10):
        write_noise(folder / f"new-{number}-{place}.wav", 1000 * number + place)
    write_noise(folder / "07.wav", 1000 * number + 500)
    (folder / "20.wav").rename(folder / "x.wav")
    (folder / "21.wav").rename(folder / "20.wav")
    (folder / "x.wav").rename(folder / "21.wav")
    (folder / f"{30 + number}.wav").unlink()


@pytest.fixture
def command(sounds, tmp_path, model_folder):
    """What is typed behind ``clapkit``."""
    DualEncoder.load(model_folder).save(tmp_path / "model")
    options = ["--batch-size", "8", "--workers", "1", "--device", "cpu", "--quiet", "--store", "fp32"]
    return lambda run_dir, *more: ["embed", sounds, "--model", tmp_path / "model", *options, "--run-dir", run_dir, *more]


def check_kills(call, command, sounds, tmp_path, moments):
    """Kill updates at these shares of their lives."""
    library = tmp_path / "library"
    code, said = call(*command(library))
    assert code == 0, said
    old = state(library)
    change(sounds, 1)
    started = time.monotonic()
    shutil.copytree(library, tmp_path / "timed")
    code, said = call(*command(tmp_path / "timed", "--update"))
    life_s = time.monotonic() - started
    assert code == 0, said
    fresh = tmp_path / "fresh"
    code, said = call(*command(fresh))
    assert code == 0, said
    new = state(fresh)
    assert state(tmp_path / "timed") == new
    for moment in moments:
        copy = tmp_path / f"{moment:.3f}"
        shutil.copytree(library, copy)
        reader = Reader(copy)
        reader.start()
        code, said = call(*command(copy, "--update"), kill_after_s=moment * life_s)
        assert state(copy) in (old, new), moment
        assert (copy / "result.json").exists()
        code, said = call(*command(copy, "--update"))
        assert code == 0, said
        reader.stop()
        assert [found for found in reader.seen if found not in (old, new)] == []
        assert state(copy) == new
        assert sorted(path.name for path in (copy / "audio_emb").iterdir()) == [f"audio_emb_{generation(copy)}.npy"]
        assert list(copy.rglob("*.tmp")) == list(copy.glob(".progress*")) == []


def generation(folder: Path) -> int:
    return int(json.loads((folder / "table.json").read_text())["generation"])


def test_an_update_that_is_killed_leaves_the_old_table_or_the_new_one(call, command, sounds, tmp_path):
    check_kills(call, command, sounds, tmp_path, [0.7])


@pytest.mark.slow
def test_an_update_that_is_killed_at_ten_random_moments_leaves_the_old_table_or_the_new_one(call, command, sounds, tmp_path):
    draw = random.Random(0)
    check_kills(call, command, sounds, tmp_path, [(number + draw.random()) / 10 for number in range(10)])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_bit_identical(call, command, tmp_path):
    started = time.monotonic()
    code, said = call(*command(tmp_path / "whole"))
    assert code == 0, said
    life_s = time.monotonic() - started
    draw = random.Random(1)
    for _ in range(10):
        call(*command(tmp_path / "stopped", "--resume"), kill_after_s=life_s * draw.uniform(0.1, 0.9))
        if (tmp_path / "stopped/result.json").exists():
            shutil.rmtree(tmp_path / "stopped")
    code, said = call(*command(tmp_path / "stopped", "--resume"))
    assert code == 0, said
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    assert list((tmp_path / "stopped").glob(".progress*")) == []
    code, said = call(*command(tmp_path / "stopped", "--resume"))
    assert code == 0, said


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(processes, command, sounds, tmp_path):
    # The interrupt comes when it is in the middle of its work, on any machine.
    first = """
import os, signal
from clapkit.steps.embedding import WindowBatch
encode, batches = WindowBatch.encode, []
def encode_and_be_interrupted(self):
    batches.append(encode(self))
    if len(batches) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return batches[-1]
WindowBatch.encode = encode_and_be_interrupted
"""
    arguments = [word for word in command(tmp_path / "stopped", "--cache", tmp_path / "cache.sqlite") if word != "--quiet"]
    places = {"folder": tmp_path, "stdout": tmp_path / "printed.txt", "stderr": tmp_path / "said.txt"}
    child = processes.start(*arguments, first=first, **places)
    code, said = processes.wait(child), (tmp_path / "said.txt").read_text()
    assert code == 130, said
    assert f"go on with: clapkit embed --resume --run-dir {tmp_path / 'stopped'}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "stopped/result.json").exists()
