"""One embedding on two processes; tests/steps/test_train_processes.py starts some as a user does, and so do slow tests here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clapkit.encoders.dual import DualEncoder
from clapkit.index.table import open_table, read_info

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
OPTIONS = ["--device", "cpu", "--batch-size", "4", "--workers", "1", "--store", "fp32"]


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_tones, model_folder):
    """A folder with a model and a corpus of eleven tones."""
    folder = tmp_path_factory.mktemp("processes")
    make_tones(folder / "tones", train=5, val=3, test=3, duration_s=1.7)
    DualEncoder.load(model_folder).save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def embedded(place, processes, group_of):
    """The same embedding on one process, and on two that know of each other as torchrun tells them."""
    command = ["embed", "tones/manifest.jsonl", "--model", "model", *OPTIONS]
    alone = processes.start(*command, "--name", "alone", folder=place, stdout=place / "alone", stderr=place / "said")
    assert processes.wait(alone) == 0, (place / "said").read_text()
    with group_of(2) as members:
        children = []
        for rank, member in enumerate(members):
            said = {"stdout": place / f"printed-{rank}", "stderr": place / f"said-{rank}"}
            children.append(processes.start(*command, "--name", "together", "--json", folder=place, **said, **member))
        codes = [processes.wait(child) for child in children]
    printed, said = ("".join((place / f"{name}-{rank}").read_text() for rank in "01") for name in ("printed", "said"))
    assert codes == [0, 0], said
    return place / "runs/embed", subprocess.CompletedProcess(command, 0, printed, said)


def content(folder, modality):
    _, table = open_table(folder, modality)
    return table.rows(range(len(table))), table.vectors.tobytes()


def test_two_processes_make_the_table_that_one_makes(embedded):
    runs, _ = embedded
    for modality in ("audio", "text"):
        assert content(runs / "together", modality) == content(runs / "alone", modality)
    assert read_info(runs / "together").id == read_info(runs / "alone").id
    assert read_info(runs / "together").data == read_info(runs / "alone").data


def test_the_first_process_alone_prints_and_nothing_is_left_of_the_parts(embedded):
    runs, together = embedded
    result = json.loads(together.stdout)  # one document
    assert result["num_processes"] == 2
    assert together.stderr.count("2 processes are done") == 1
    assert not (runs / "together/parts").exists()
    assert sorted(path.name for path in runs.iterdir()) == ["alone", "together"]


@pytest.mark.slow
def test_a_call_with_nothing_to_do_ends_on_all_processes(embedded):
    runs, _ = embedded
    again = run(*TORCHRUN, "clapkit", "embed", "--resume", "--name", "together", cwd=runs.parent.parent)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.wav"], "error: input nowhere.wav: no such file or folder"),
        (["tones/audio/val-0.wav"], "error: shard 0/2: tones/audio/val-0.wav has 1 clips, expected no more parts than clips"),
        (["tones/manifest.jsonl", "--shard", "0/2"], "error: --shard: runs in one process, not under torchrun"),
    ],
)
def test_wrong_input_is_an_error_and_not_a_hang(place, arguments, message):
    refused = run(*TORCHRUN, "clapkit", "embed", *arguments, "--model", "model", *OPTIONS, "--name", "odd", cwd=place)
    assert refused.returncode != 0
    assert refused.stderr.count(message) == 1
    assert not (place / "runs/embed/odd").exists()
