"""``prepare`` killed at any moment: ``--resume`` ends with the bytes of a run that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16000
NUM_FILES = 300
NUM_ROUNDS = 10
ARTEFACTS = ("manifest.jsonl", "report.json", "rejected.jsonl", "files.parquet", "report.html", "result.json")


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 files of up to a second in class folders, wav and ogg, every tenth one a copy and every fifteenth one bad."""
    folder = tmp_path_factory.mktemp("kill") / "noises"
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        suffix = "ogg" if number % 3 == 0 else "wav"
        path = folder / ("dog bark", "rain", "glass")[number % 3] / f"{number:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 15 == 7:
            path.write_bytes((b"", b"no sound at all", b"RIFF\xff\xff\xff\x7fWAVEfmt ")[number % 3])
        elif number % 10 == 9:
            shutil.copyfile(path.with_name(f"{number - 9:03d}.{suffix}"), path)
        else:
            soundfile.write(path, generator.normal(0, 0.1, generator.integers(RATE // 2, RATE)), RATE)
    return folder


def command(source: Path, run_dir: Path, *arguments: str) -> list[str]:
    call = [sys.executable, "-m", "clapkit", "prepare", str(source), "--run-dir", str(run_dir), "--workers", "2", "--quiet"]
    return [*call, "--cache-audio", "flac", "--cache-rate", "8000", *arguments]


def kill_after(source: Path, run_dir: Path, seconds: float) -> bool:
    """Start or go on, kill the process after a while; tells whether it was still there."""
    # No pipes: processes that outlive their parent would keep them open, and us waiting.
    process = subprocess.Popen(command(source, run_dir, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert process.wait(timeout=seconds) == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def finish(source: Path, run_dir: Path) -> None:
    done = subprocess.run(command(source, run_dir, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def contents(run_dir: Path) -> dict[str, bytes]:
    """What a run leaves, by name; the header of the manifest names the folder of the run only if it lies elsewhere."""
    copies = {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in (run_dir / "decoded").rglob("*.flac")}
    return {name: (run_dir / name).read_bytes() for name in ARTEFACTS} | copies


def leftovers(run_dir: Path) -> list[str]:
    known = {*ARTEFACTS, "run.json", "log.txt", "decoded", ".lock"}
    top = [path.name for path in run_dir.iterdir() if path.name not in known]
    return top + [str(path) for path in (run_dir / "decoded").rglob("*") if path.is_file() and path.suffix != ".flac"]


def workers_of(run_dir: Path) -> list[int]:
    """Processes of a run that outlived it, by what they inherited."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(f"CLAPKIT_KILL_TEST={run_dir}") in arguments:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bytes(noises: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start = time.monotonic()
    finish(noises, tmp_path / "whole")
    life_s = time.monotonic() - start
    expected = contents(tmp_path / "whole")
    assert json.loads(expected["result.json"])["num_rejected"] == 20
    assert leftovers(tmp_path / "whole") == []
    inputs = json.loads((tmp_path / "whole" / "run.json").read_text())["inputs"]
    assert len(inputs) == 1
    generator = random.Random(0)
    for number in range(NUM_ROUNDS):
        run_dir = tmp_path / str(number)
        monkeypatch.setenv("CLAPKIT_KILL_TEST", str(run_dir))
        # Spread over its life; every third run is killed up to three times in a row.
        moments = [life_s * (number + generator.random()) / NUM_ROUNDS]
        moments += [life_s * generator.random() for _ in range(2 if number % 3 == 0 else 0)]
        killed = [kill_after(noises, run_dir, moment) for moment in moments]
        finish(noises, run_dir)
        found = contents(run_dir)
        about = f"round {number}, killed after {moments} of {life_s:.1f} s ({killed})"
        assert found.keys() == expected.keys(), about
        assert [name for name in expected if found[name] != expected[name]] == [], about
        assert leftovers(run_dir) == [], about
        assert json.loads((run_dir / "run.json").read_text())["inputs"] == inputs, about
        time.sleep(1)  # for processes whose parent has gone
        assert workers_of(run_dir) == [], about
