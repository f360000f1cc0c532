"""The scripts of ``docs/studies``: their methods exist, and their tables say what the runs measured."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from clapkit import registry
from clapkit.config import TrainConfig, resolve
from clapkit.steps.train_options import check, plugin_options

STUDIES = Path(__file__).parent.parent / "docs" / "studies"
SCRIPT = STUDIES / "compositional.sh"
METHODS = re.findall(r"^ +([\w-]+)\) +echo (.+) ;;$", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compositional", STUDIES / "compositional.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_names_all_methods_of_the_study() -> None:
    assert len(METHODS) == 11
    default = re.search(r"methods=\$\{METHODS:-(.+?)\}", SCRIPT.read_text())
    assert default is not None
    assert set(default[1].split()) <= {name for name, _ in METHODS}


@pytest.mark.parametrize(("name", "flags"), METHODS, ids=[name for name, _ in METHODS])
def test_every_method_of_the_script_is_a_valid_training(name: str, flags: str) -> None:
    words = flags.split()
    given = {flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
    if "radius_init" in given:
        given["radius_init"] = float(given["radius_init"])
    config = resolve(TrainConfig, given)
    check(config)
    options = plugin_options(config)
    assert config.loss in registry.names("loss")
    assert ("schedule" in options) == name.endswith("mmts")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def fake_study(root: Path) -> None:
    """Three methods, two seeds, four galleries of three clips."""
    hits = {
        **{"infonce-0": [1, 1, 0], "infonce-1": [1, 0, 0]},
        **{"svr-fixed-0": [0, 1, 0], "svr-fixed-1": [1, 0, 0]},
        **{"svr-static-0": [1, 1, 1], "svr-static-1": [1, 1, 1]},
    }
    clips = [
        {"id": f"{split}-{n}", "extra": {"composition": ("single", "then", "while")[n]}} for split in SPLITS for n in range(3)
    ]
    (root / "prepare" / "mix").mkdir(parents=True)
    lines = [json.dumps(line) for line in [{"clapkit_manifest": 1}, *clips]]
    (root / "prepare" / "mix" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    for split in SPLITS:
        rows = [
            {"run": run, "direction": direction, "id": f"{split}-{n}", "R@1": float(hit), "R@10": 1.0, "mAP@10": 0.5}
            for run, found in hits.items()
            for n, hit in enumerate(found)
            # The first clip has two captions: it counts once all the same.
            for direction in ("t2a", "t2a", "a2t")[0 if n == 0 else 1 :]
        ]
        (root / "eval" / split).mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(root / "eval" / split / "per_query.parquet")
    for run in hits:
        folder = root / "train" / run
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"train_s": 100.0 if run.startswith("infonce") else 110.0}))
        drift = {f"{prefix}{key}": 0.25 for prefix in ("", "infonce_") for key in DRIFT}
        logged = [{"step": 1, "step_cos": 9.0}, {"step": 5, **drift}, {"step": 6, "loss": 1.0}]
        if run.startswith("svr"):
            logged[-1] |= {"mean_rho": 0.5, "share_rho_above_1": 0.125}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))


SPLITS = ("test", "test-2", "test-3", "test-4")
DRIFT = ("force_cos_local", "force_cos_global", "step_cos", "perp_ratio", "perp_ratio_variance")


def test_the_tables_hold_what_was_measured(tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_study(tmp_path)
    tables.main(tmp_path)
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.setdefault(name, []).append(cells)
    # Mean over clips of the mean over seeds: (1 + 1/2 + 0) / 3 and 1.
    assert rows["infonce"][0][0].startswith("50.0 [")
    assert rows["infonce"][0][-1] == "66.7, 33.3"
    assert rows["svr-static"][0][0] == "100.0 [100.0, 100.0]"
    # The paired difference: (0 + 1/2 + 1) / 3, by seed 1/3 and 2/3.
    assert rows["svr-static"][1][0].startswith("+50.0 [")
    assert rows["svr-static"][1][0].endswith("(+33.3, +66.7)")
    # To the control: (1/2 + 1/2 + 1) / 3.
    assert rows["svr-static"][2][0].startswith("+66.7 [")
    assert rows["infonce"][1] == ["100.0", "50.0", "0.0"]
    assert rows["svr-static"][4][:3] == ["1.10", "0.50", "12 %"]
    assert rows["infonce"][2][:3] == ["1.00", "", ""]


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls(tables: ModuleType) -> None:
    # Sorted 0.01, 0.02, 0.03: 3 * 0.01, 2 * 0.02, max(0.04, 0.03).
    assert tables.holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx({"b": 0.03, "c": 0.04, "a": 0.04})
    assert tables.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
