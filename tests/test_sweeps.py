"""``docs/sweeps.md`` as it is written: its lines are valid, its script runs, runs again for nothing, and compares."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clapkit.cli import train as train_command

PAGE = (Path(__file__).parent.parent / "docs" / "sweeps.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
SCRIPT = BLOCKS[0]
# Small enough for a test: what the page leaves at its default, or says for a real sweep, is made tiny behind its back.
SHIM = f"""#!/usr/bin/env bash
case $1 in
  prepare) exec "{sys.executable}" -m clapkit "$@" -O num_clips=60 ;;
  train) exec "{sys.executable}" -m clapkit "$@" --max-steps 2 --audio-encoder tiny --text-encoder tiny --embedding-dim 16 ;;
  *) exec "{sys.executable}" -m clapkit "$@" --bootstrap 50 ;;
esac
"""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None or shutil.which("xargs") is None, reason="no bash or xargs here")


@needs_bash
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_is_valid_shell(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@needs_bash
def test_every_line_of_the_sweep_is_a_valid_training():
    functions = SCRIPT[SCRIPT.index("lines() {") : SCRIPT.index("lines | xargs")]
    printed = subprocess.run(
        ["bash"], input=f"seeds='0 1 2'\n{functions}\nlines\n", text=True, check=True, capture_output=True
    ).stdout
    lines = [shlex.split(line) for line in printed.splitlines()]
    assert len(lines) == 12
    assert len({words[1] for words in lines}) == 12
    for words in lines:
        flags = {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
        config = train_command.configure(flags | {"seed": int(flags["seed"])})
        assert str(config.name).endswith(f"-{config.seed}")


@pytest.fixture
def sweep(tmp_path):
    """Runs the script of the page; gives its standard output and what it said."""
    script, programs = tmp_path / "sweep.sh", tmp_path / "bin"
    script.write_text(SCRIPT)
    programs.mkdir()
    (programs / "clapkit").write_text(SHIM)
    (programs / "clapkit").chmod(0o755)

    def run(seeds):
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SEEDS": seeds, "CLAPKIT_RUNS": "runs"}
        done = subprocess.run(["bash", str(script)], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done

    return run


def finished(root):
    return {path.parent.name: path.stat().st_mtime_ns for path in (root / "runs/train").glob("*/result.json")}


@needs_bash
@pytest.mark.slow
def test_the_script_runs_runs_again_for_nothing_and_goes_on(sweep, tmp_path):
    sweep("0")
    first = finished(tmp_path)
    assert set(first) == {"infonce-0", "siglip-0", "svr-static-0", "svr-adaptive-0"}
    (tmp_path / "runs/train/siglip-0/result.json").unlink()  # as if it had been interrupted
    sweep("0 1")
    second = finished(tmp_path)
    assert len(second) == 8
    assert {name for name in first if second[name] != first[name]} == {"siglip-0"}
    comparison = json.loads((tmp_path / "runs/eval/compared/comparison.json").read_text())
    assert len(comparison["rows"]) == 8
    assert comparison["baseline"] == "infonce-0"
    assert (tmp_path / "runs/eval/compared/report.html").is_file()
