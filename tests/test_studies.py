"""The scripts of ``docs/studies``: their methods exist, and their tables say what the runs measured."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from clapkit import registry
from clapkit.config import TrainConfig, resolve
from clapkit.data.audio import load
from clapkit.data.manifest import Manifest
from clapkit.steps.train_options import check, plugin_options
from clapkit.types import Caption, Clip

STUDIES = Path(__file__).parent.parent / "docs" / "studies"
SCRIPT = STUDIES / "compositional.sh"
METHODS = re.findall(r"^ +([\w-]+)\) +echo (.+) ;;$", SCRIPT.read_text(), re.MULTILINE)


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return module_of("compositional")


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


# The wider family -------------------------------------------------------------------------------------------------------

FAMILY = STUDIES / "family.sh"
PARTS = ("noise", "cleaning", "order", "forgetting", "languages", "long")
FLAGS_OF = re.findall(r"^ +([\w-]+)\) +echo (.+) ;;$", FAMILY.read_text(), re.MULTILINE)
needs_bash = pytest.mark.skipif(shutil.which("bash") is None or shutil.which("xargs") is None, reason="no bash or xargs here")


@pytest.fixture(scope="module")
def family() -> ModuleType:
    return module_of("family")


def read_flags(words: list[str]) -> TrainConfig:
    """The configuration that a command line of ``clapkit train`` means."""
    hints = typing.get_type_hints(TrainConfig)
    given: dict[str, Any] = {"options": ()}
    while words:
        flag, *words = words
        name = {"-O": "options"}.get(flag, flag.removeprefix("--").replace("-", "_"))
        if hints[name] is bool:
            given[name] = True
            continue
        value, *words = words
        given[name] = (*given["options"], value) if name == "options" else registry.read_value(name, value, hints[name])
    return resolve(TrainConfig, given)


@pytest.mark.parametrize(("name", "flags"), FLAGS_OF, ids=[name for name, _ in FLAGS_OF])
def test_every_method_of_the_family_is_a_valid_training(name: str, flags: str) -> None:
    config = read_flags(shlex.split(flags))
    check(config)
    plugin_options(config)
    assert config.loss in registry.names("loss")
    assert (config.base == "svr") == (name.endswith("-svr"))


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What all parts of the script would run, with one seed: the words of each command."""
    folder = tmp_path_factory.mktemp("script")
    for name in ("clapkit", "python"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "{folder}/calls"\n')
        command.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SEEDS": "0", "JOBS": "1", "CLAPKIT_RUNS": "runs"}
    subprocess.run(["bash", str(FAMILY), " ".join(PARTS)], check=True, env=environment, cwd=folder)
    return [line.split() for line in (folder / "calls").read_text().splitlines()]


@needs_bash
def test_the_script_of_the_family_is_valid_shell_and_refuses_parts_that_it_does_not_have(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(FAMILY)], check=True)
    done = subprocess.run(["bash", str(FAMILY), "noises"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "no part noises; expected noise, cleaning, order, forgetting, languages or long" in done.stderr


@needs_bash
def test_every_training_that_the_script_starts_is_valid(called: list[list[str]]) -> None:
    trainings = [words[2:] for words in called if words[:2] == ["clapkit", "train"]]
    names = set()
    for words in trainings:
        config = read_flags(words)
        check(config)
        plugin_options(config)
        names.add(config.name)
    # 3 + 5 + 3 of noise, 1 of cleaning, 6 of order, 1 + 5 of forgetting, 6 of languages, 1 + 4 of long recordings.
    assert len(names) == len(trainings) == 35
    methods = {words[words.index("--loss") + 1] for words in trainings if "--loss" in words}
    assert methods == {"infonce", "svr", "dbpm", "compa", "hycd", "albef"}


@needs_bash
def test_what_the_script_evaluates_was_trained(called: list[list[str]]) -> None:
    trained = {read_flags(words[2:]).name for words in called if words[:2] == ["clapkit", "train"]}
    evaluated = set()
    for words in called:
        if words[:2] == ["clapkit", "eval"]:
            evaluated |= set(words[2 : next(n for n, word in enumerate(words) if word.startswith("--"))])
    assert evaluated == trained


@needs_bash
def test_cleaning_leaves_out_as_many_suspects_as_were_planted_and_takes_as_many_steps_as_before(
    called: list[list[str]],
) -> None:
    prepared = next(words for words in called if words[:3] == ["clapkit", "prepare", "manifest"])
    config = read_flags(next(words[2:] for words in called if "noise-20-cleaned-0" in words))
    assert prepared[prepared.index("--exclude") + 1].endswith("noise-20-dbpm-0/suspects.csv:1200")
    assert config.max_steps == 8 * (6000 // 96)


@needs_bash
def test_the_tables_of_each_part_come_last(called: list[list[str]]) -> None:
    asked = [words[3:] for words in called if words[0] == "python" and words[2] == "table"]
    assert asked == [["runs", part] for part in PARTS]


@pytest.fixture
def mixtures(tmp_path: Path) -> Manifest:
    """40 clips of train and 8 of test, two captions and one of five labels each."""
    clips = [
        Clip(
            id=f"mix/{n}",
            audio=f"{n}.wav",
            duration_s=1.0,
            sample_rate=16000,
            num_channels=1,
            captions=(Caption(f"sound {n}"), Caption(f"a sound like {n}")),
            labels=("abcde"[n % 5],),
            split="train" if n < 40 else "test",
            extra={"composition": "single"},
        )
        for n in range(48)
    ]
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="mix")


@pytest.mark.parametrize(("percent", "number"), [(10, 4), (20, 8), (40, 16)])
def test_the_stated_share_of_training_clips_gets_captions_of_others(
    family: ModuleType, mixtures: Manifest, tmp_path: Path, percent: int, number: int
) -> None:
    family.plant(mixtures, tmp_path / "noisy.jsonl", percent=percent)
    noisy = Manifest.load(tmp_path / "noisy.jsonl")
    pairs = list(zip(mixtures.clips, noisy.clips, strict=True))
    planted = [(before, after) for before, after in pairs if after.extra.get("planted")]
    assert len(planted) == number
    assert all(before.split == "train" and before.captions != after.captions for before, after in planted)
    # They change places: each caption is there as often as before. Nothing else changes.
    assert sorted(str(after.captions) for _, after in planted) == sorted(str(before.captions) for before, _ in planted)
    for before, after in pairs:
        kept = {key: value for key, value in after.extra.items() if key != "planted"}
        assert dataclasses.replace(after, captions=before.captions, extra=kept) == before
        assert after.captions == before.captions or after.extra["planted"]


def test_which_captions_change_places_is_drawn_anew_for_every_share(
    family: ModuleType, mixtures: Manifest, tmp_path: Path
) -> None:
    found = []
    for name, percent in (("a", 20), ("again", 20), ("b", 40)):
        family.plant(mixtures, tmp_path / f"{name}.jsonl", percent=percent)
        found.append([clip.id for clip in Manifest.load(tmp_path / f"{name}.jsonl").clips if clip.extra.get("planted")])
    assert found[0] == found[1]
    assert not set(found[0]) <= set(found[2])


def test_the_halves_have_every_class_once(family: ModuleType, mixtures: Manifest, tmp_path: Path) -> None:
    clips = [*mixtures.clips, dataclasses.replace(mixtures.clips[0], id="both", labels=("a", "b"))]
    source = Manifest.write(tmp_path / "more.jsonl", clips, root=tmp_path, name="mix")
    labels = {}
    for which in "ab":
        family.half(source, tmp_path / f"{which}.jsonl", which=which)
        half = Manifest.load(tmp_path / f"{which}.jsonl")
        labels[which] = {label for clip in half.clips for label in clip.labels}
        assert len(half.clips) == sum(clip.labels[0] in labels[which] for clip in mixtures.clips)
        assert half.name == f"mix-{which}"
    assert labels == {"a": {"a", "c", "e"}, "b": {"b", "d"}}


def test_a_clip_lies_in_the_long_file_where_its_event_says(family: ModuleType, mixtures: Manifest, tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "0.wav", tone, 16000, subtype="PCM_16")
    (tmp_path / "long" / "audio").mkdir(parents=True)
    starts = []
    for number in (0, 1):
        clip = family._write_long(mixtures, tmp_path / "long", 4, mixtures.clips[0], number)
        sound = load(tmp_path / "long" / clip.audio, sample_rate=16000)
        (event,) = clip.extra["events"]
        start = round(event["start_s"] * 16000)
        starts.append(start)
        assert (clip.id, clip.duration_s, len(sound), event["class"]) == ("long/0", 4.0, 64000, "a")
        # -45 dBFS are 0.0056: five deviations of the noise are 0.028.
        assert np.abs(sound[start : start + 16000] - tone).max() < 0.04
        assert np.abs(np.concatenate([sound[:start], sound[start + 16000 :]])).max() < 0.04
        assert (clip.captions, clip.split) == (mixtures.clips[0].captions, "train")
    assert starts[0] != starts[1]


def rows_of(lines: list[str]) -> dict[str, list[list[str]]]:
    """First cell of each row of Markdown tables -> the other cells of the rows that begin so."""
    rows: dict[str, list[list[str]]] = {}
    for line in lines:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.setdefault(name, []).append(cells)
    return rows


def fake_retrieval(root: Path, prefix: str, hits: dict[str, list[int]]) -> None:
    """Galleries of a clip each; the t2a hits of runs, a2t always finds."""
    for gallery, split in enumerate(SPLITS):
        rows = [
            {"task": "retrieval", "run": run, "direction": direction, "id": split, "R@1": float(hit)}
            for run, found in hits.items()
            for direction, hit in (("t2a", found[gallery]), ("t2a", found[gallery]), ("a2t", 1))
        ]
        rows.append(rows[0] | {"task": "other", "R@1": 0.0})
        (root / "eval" / f"{prefix}-{split}").mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(root / "eval" / f"{prefix}-{split}" / "per_query.parquet")


def test_the_tables_of_noise_count_what_was_planted(family: ModuleType, tmp_path: Path, mixtures: Manifest) -> None:
    for percent in (10, 20, 40):
        family.plant(mixtures, tmp_path / f"noisy-{percent}.jsonl", percent=percent)
        prefix = f"noise-{percent}"
        fake_retrieval(tmp_path, prefix, {f"{prefix}-dbpm-svr-0": [1, 1, 0, 0], f"{prefix}-dbpm-svr-1": [1, 1, 1, 1]})
    planted = [clip.id for clip in Manifest.load(tmp_path / "noisy-20.jsonl").clips if clip.extra.get("planted")]
    others = sorted({clip.id for clip in mixtures.clips} - set(planted))
    # 8 are planted; 6 of them are among the first 8, all among the first 100, 3 of the 4 that are marked.
    listed = [*planted[:3], *others[:2], *planted[3:], *others[2:]]
    kinds = ["faulty"] * 4 + ["clean"] * (len(listed) - 4)
    folder = tmp_path / "train" / "noise-20-dbpm-svr-0"
    folder.mkdir(parents=True)
    pd.DataFrame({"id": listed, "kind": kinds}).to_csv(folder / "suspects.csv", index=False)
    rows = rows_of(list(family.table(tmp_path, "noise")))
    assert rows["20 %"] == [["dbpm-svr-0", "75.0 %", "17 %", "4", "75.0 %"]]  # 8 of all 48 are 17 %
    assert len(rows["dbpm-svr"]) == 3
    for cells in rows["dbpm-svr"]:
        # Over clips: (1 + 1 + 1/2 + 1/2) / 4. By seed: 2/4 and 4/4.
        assert cells[0].startswith("75.0 [")
        assert cells[1:] == ["100.0 [100.0, 100.0]", "50.0, 100.0"]


def test_the_tables_of_forgetting_show_both_halves(family: ModuleType, tmp_path: Path) -> None:
    fake_retrieval(tmp_path, "forgetting-a", {"start-0": [1, 1, 1, 1], "tuned-hycd-0": [1, 0, 0, 0]})
    fake_retrieval(tmp_path, "forgetting-b", {"start-0": [0, 0, 0, 0], "tuned-hycd-0": [1, 1, 1, 0]})
    rows = rows_of(list(family.table(tmp_path, "forgetting")))
    assert [cells[-1] for cells in rows["start"]] == ["100.0", "0.0"]
    assert [cells[-1] for cells in rows["tuned-hycd"]] == ["25.0", "75.0"]


def test_the_tables_of_languages_show_the_lowest_and_the_highest_seed(family: ModuleType, tmp_path: Path) -> None:
    def run(name: str, recall: float, variance: float) -> dict[str, Any]:
        metrics = {"multilingual_a2t_R@1": recall, "mean_rank_variance": variance, "multilingual_a2t_R@5": 1.0}
        variants = {"language_de": {"metrics": {"t2a_R@1": recall / 2}}, "other": {"metrics": {"t2a_R@1": 1.0}}}
        return {"run": name, "tasks": {"multilingual": {"metrics": metrics, "variants": variants}}}

    folder = tmp_path / "eval" / "languages"
    folder.mkdir(parents=True)
    runs = [run("all-svr-0", 0.5, 3.0), run("all-svr-1", 0.7, 5.0), run("any-0", 0.2, 9.0)]
    (folder / "results.json").write_text(json.dumps({"runs": runs}))
    rows = rows_of(list(family.table(tmp_path, "languages")))
    assert rows["method"] == [["multilingual_a2t_R@1", "mean_rank_variance", "de_t2a_R@1"]]
    assert rows["all-svr"] == [["60.0 (50.0 to 70.0)", "4.0 (3.0 to 5.0)", "30.0 (25.0 to 35.0)"]]
    assert rows["any"] == [["20.0 (20.0 to 20.0)", "9.0 (9.0 to 9.0)", "10.0 (10.0 to 10.0)"]]


def test_the_table_of_long_recordings_leaves_out_what_a_model_cannot_do(family: ModuleType, tmp_path: Path) -> None:
    for name in family.LONG:
        metrics = {"mean_t2a_R@1": 0.25} | ({"attention_t2a_R@1": 0.5} if name == "long-attention" else {})
        (tmp_path / "eval" / name).mkdir(parents=True)
        run = {"run": f"{name}-0", "tasks": {"windows": {"metrics": metrics}}}
        (tmp_path / "eval" / name / "results.json").write_text(json.dumps({"runs": [run]}))
    rows = rows_of(list(family.table(tmp_path, "long")))
    assert rows["method"] == [["mean_t2a_R@1", "attention_t2a_R@1"]]
    assert rows["long-attention"] == [["25.0 (25.0 to 25.0)", "50.0 (50.0 to 50.0)"]]
    assert rows["short"] == [["25.0 (25.0 to 25.0)", ""]]


def test_the_nearest_captions_are_told_apart(family: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "prepare" / "mix"
    folder.mkdir(parents=True)
    labels = [("dog", "rain"), ("rain", "dog"), ("dog",), ("owl", "rain")]
    clips = [
        Clip(f"mix/{split}-{n}", f"{n}.wav", 5.0, captions=(Caption(f"{n} one"), Caption(f"{n} two")), labels=own, split=split)
        for split in family.GALLERIES
        for n, own in enumerate(labels)
    ]
    Manifest.write(folder / "manifest.jsonl", clips, root=folder, name="mix")

    class Model:
        def embed_audio(self, sounds: list[Path], *, batch_size: int) -> np.ndarray:
            return np.eye(4)

        def embed_text(self, sentences: list[str], *, batch_size: int) -> np.ndarray:
            assert sentences[:3] == ["0 one", "0 two", "1 one"]
            # Columns: sounds 0 to 3. Sound 0 is nearest to the dog alone and then to its own second caption, 1 to what sound 0
            # says, 2 to its own, 3 to sound 1, which shares a label only.
            return np.array(
                [
                    [0.1, 0.9, 0.0, 0.0],
                    [0.8, 0.0, 0.0, 0.0],
                    [0.7, 0.2, 0.0, 0.9],
                    [0.0, 0.0, 0.0, 0.0],
                    [0.9, 0.0, 0.5, 0.0],
                    [0.0, 0.0, 0.0, 0.0],
                    [0.0, 0.0, 0.0, 0.8],
                    [0.0, 0.0, 0.0, 0.0],
                ]
            )

    monkeypatch.setattr(family.clapkit, "load", lambda run, device: Model())
    family.nearest(tmp_path, ["order-compa-0"], device="cpu")
    found = pd.read_parquet(tmp_path / "nearest.parquet")
    assert found[["method", "seed"]].drop_duplicates().values.tolist() == [["order-compa", "0"]]
    first = found[found["id"].str.startswith("mix/test-") & ~found["id"].str.contains("test-.-")]
    assert first["right"].tolist() == [False, False, True, False]
    assert first["part"].tolist() == [True, False, False, False]
    assert first["alike"].tolist() == [False, True, False, False]
    np.testing.assert_array_equal(first["composite"], [1, 0, np.nan, 0])


def test_choices_of_order_compare_a_clip_with_its_counterpart(
    family: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "prepare" / "mix"
    folder.mkdir(parents=True)
    clips = [
        Clip(
            f"mix/{number}",
            f"{number}.wav",
            5.0,
            captions=(Caption(f"{number} first"), Caption(f"{number} second")),
            labels=labels,
            split="test",
            extra={"composition": composition},
        )
        for number, (labels, composition) in enumerate(
            [(("dog", "rain"), "then"), (("rain", "dog"), "then"), (("dog", "rain"), "while")]
        )
    ]
    Manifest.write(folder / "manifest.jsonl", clips, root=folder, name="mix")

    class Model:
        def embed_audio(self, sounds: list[Path], *, batch_size: int) -> np.ndarray:
            assert [path.name for path in sounds] == ["0.wav", "1.wav"]  # the third has no order
            return np.array([[1.0, 0.0], [0.6, 0.8]])

        def embed_text(self, sentences: list[str], *, batch_size: int) -> np.ndarray:
            assert sentences == ["0 first", "0 second", "1 first", "1 second"]
            return np.array([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])

    monkeypatch.setattr(family.clapkit, "load", lambda run, device: Model())
    family.choose(tmp_path, ["order-compa-svr-0"], device="cpu")
    found = pd.read_parquet(tmp_path / "choices.parquet")
    assert found[["method", "seed"]].values.tolist() == [["order-compa-svr", "0"]] * 2
    # Clip 0: own captions 0.8 and 1, those of clip 1 score 0 and 1: one right, one tied, which is wrong.
    # Clip 1: own captions 0.8 and 0.6, those of clip 0 score 0.96 and 0.6: both wrong.
    assert found["text"].tolist() == [0.5, 0.0]
    # Captions of clip 0 with its sound 0.8 and 1, with the other 0.96 and 0.6; those of clip 1: 0.8 and 0.6 against 0 and 1.
    assert found["audio"].tolist() == [0.5, 0.5]
