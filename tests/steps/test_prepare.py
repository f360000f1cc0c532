import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from clapkit.config import PrepareConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.run_dir import RunDir
from clapkit.steps import prepare
from clapkit.types import SilentReporter

RATE = 8000


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def sound(path: Path, *, num_frames: int = 800, key: int = 0, level: float = 0.5, num_channels: int = 1) -> Path:
    """A ramp; ``key`` makes its bytes unique."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = level * (np.arange(num_frames) + key) / (num_frames + key)
    soundfile.write(path, np.stack([samples] * num_channels, axis=1), RATE)
    return path


def corpus(folder: Path, *, num_clips: int = 20) -> Path:
    for i in range(num_clips):
        sound(folder / ("dog", "cat")[i % 2] / f"{i:02d}.wav", key=i)
    return folder


def run(tmp_path: Path, **given: Any) -> dict[str, Any]:
    return Run(tmp_path, **given).result


class Run:
    """One call of the step and what it left behind."""

    def __init__(self, tmp_path: Path, **given: Any) -> None:
        config = resolve(PrepareConfig, given)
        self.path = tmp_path / "run"
        self.listener = Listener()
        run_dir = RunDir.create(self.path, step="prepare", config=config.resolved(), overwrite=True)
        try:
            self.result = prepare.run(config, run_dir, self.listener)
            run_dir.finish(self.result)
        finally:
            run_dir.release()

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.path / "manifest.jsonl")

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "report.json").read_text())
        return content

    @property
    def rejected(self) -> list[dict[str, str]]:
        return read_rejected(self.path)


def read_rejected(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (path / "rejected.jsonl").read_text().splitlines()]


# What is written --------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_manifest_a_report_and_a_result(tmp_path: Path) -> None:
    source = corpus(tmp_path / "sounds")
    sound(source / "dog" / "99.wav", num_frames=1600, num_channels=2)
    done = Run(tmp_path, recipe=str(source))
    clip = next(clip for clip in done.manifest if clip.id == "dog/99")
    assert (clip.duration_s, clip.sample_rate, clip.num_channels) == (0.2, RATE, 2)
    assert done.manifest.root == source
    assert done.manifest.audio_path(clip) == source / "dog" / "99.wav"
    assert Counter(clip.split for clip in done.manifest) == {"train": 17, "val": 2, "test": 2}
    assert done.result["fingerprint"] == done.manifest.fingerprint
    assert (done.result["num_clips"], done.result["num_captions"], done.result["num_rejected"]) == (21, 21, 0)
    assert done.result["splits"] == done.manifest.splits
    assert done.result["hours"] == pytest.approx((20 * 0.1 + 0.2) / 3600)
    assert done.report["channels"] == {"1": 20, "2": 1}
    assert done.report["labels"] == {"cat": 10, "dog": 11}
    assert done.report["check"] == "decode"
    assert done.rejected == []
    assert done.listener.warnings == []


def test_the_same_corpus_gives_the_same_fingerprint_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = run(tmp_path / "a", recipe=str(corpus(tmp_path / "a" / "x")))
    assert run(tmp_path / "b", recipe=str(corpus(tmp_path / "b" / "y")))["fingerprint"] == first["fingerprint"]


def test_the_input_is_recorded_by_content(tmp_path: Path) -> None:
    source = corpus(tmp_path / "x", num_clips=2)
    fingerprints = []
    for key in (7, 7, 8):
        sound(source / "dog" / "00.wav", key=key)
        done = Run(tmp_path, recipe="folder", source=str(source))
        (entry,) = json.loads((done.path / "run.json").read_text())["inputs"]
        assert entry["path"] == str(source)
        fingerprints.append(entry["fingerprint"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_table_takes_its_audio_from_the_audio_dir(tmp_path: Path) -> None:
    sound(tmp_path / "sounds" / "a.wav")
    (tmp_path / "t.csv").write_text("audio,caption\na.wav,One.\na.wav,Two.\n")
    done = Run(tmp_path, recipe=str(tmp_path / "t.csv"), audio_dir=tmp_path / "sounds")
    assert done.manifest.root == tmp_path / "sounds"
    assert [caption.text for caption in done.manifest.clips[0].captions] == ["One.", "Two."]
    assert (done.result["recipe"], done.result["name"]) == ("table", "t")


def test_spans_are_as_long_as_they_say_and_must_lie_inside(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")  # 0.1 s
    (tmp_path / "t.csv").write_text("audio,start_s,end_s\na.wav,0.02,0.05\na.wav,0.05,\na.wav,0.05,0.2\na.wav,0.3,\n")
    done = Run(tmp_path, recipe=str(tmp_path / "t.csv"))
    assert [clip.duration_s for clip in done.manifest] == pytest.approx([0.03, 0.05])
    assert [row["item"] for row in done.rejected] == ["a@0.05-0.2", "a@0.3-"]
    assert "expected it inside the 0.1 s of a.wav" in done.rejected[0]["reason"]


# Choices ----------------------------------------------------------------------------------------------------------------


def test_one_split_can_be_given_to_all(tmp_path: Path) -> None:
    done = Run(tmp_path, recipe=str(corpus(tmp_path / "x", num_clips=3)), split="test")
    assert done.manifest.splits == {"test": 3}
    assert done.listener.warnings == []


def test_splits_of_the_corpus_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "x"
    for i, split in enumerate(["train", "valid", "test"]):
        sound(source / split / "dog" / "a.wav", key=i)
    assert Run(tmp_path, recipe=str(source)).manifest.splits == {"test": 1, "train": 1, "val": 1}


def test_one_clip_goes_to_train_and_that_is_said(tmp_path: Path) -> None:
    sound(tmp_path / "x" / "a_dog.wav")
    done = Run(tmp_path, recipe=str(tmp_path / "x"))
    assert done.manifest.splits == {"train": 1}
    assert "sources found: 1, too few to split: all clips are in train" in done.listener.warnings[0]


def test_shares_that_the_data_cannot_fill_are_refused(tmp_path: Path) -> None:
    source = corpus(tmp_path / "x", num_clips=2)
    with pytest.raises(ManifestError, match="not enough data for the split: 2 sources found, expected at least 3"):
        run(tmp_path, recipe=str(source), options=("val_share=0.2",))
    assert not (tmp_path / "run" / "manifest.jsonl").exists()


def test_copies_of_a_file_never_fall_in_two_splits_but_are_said(tmp_path: Path) -> None:
    source = tmp_path / "x"
    for i in range(40):
        sound(source / f"{i}.wav", key=i // 2)
    done = Run(tmp_path, recipe=str(source))
    assert set(done.manifest.splits) == {"train", "val", "test"}
    assert done.report["duplicates"]["num_groups"] == 20
    assert done.report["duplicates"]["num_groups_across_splits"] == 0
    assert "copies of one file: 20, of these across splits: 0" in done.listener.warnings[0]


def test_copies_across_official_splits_are_counted(tmp_path: Path) -> None:
    sound(tmp_path / "x" / "train" / "a.wav")
    sound(tmp_path / "x" / "test" / "b.wav")
    done = Run(tmp_path, recipe=str(tmp_path / "x"))
    assert done.report["duplicates"] == {
        "num_groups": 1,
        "num_groups_across_splits": 1,
        "groups": [["test/b", "train/a"]],
    }


def test_a_table_that_names_only_some_splits_is_refused(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    sound(tmp_path / "b.wav")
    (tmp_path / "t.csv").write_text("audio,split\na.wav,train\nb.wav,\n")
    with pytest.raises(ManifestError, match=r"1 of 2 clips name no split \(first: b\), expected all or none"):
        run(tmp_path, recipe=str(tmp_path / "t.csv"))


def test_limit_takes_the_first_clips(tmp_path: Path) -> None:
    source = corpus(tmp_path / "x")
    (source / "cat" / "00.wav").write_bytes(b"")
    done = Run(tmp_path, recipe=str(source), limit=3)
    assert [clip.id for clip in done.manifest] == ["cat/01", "cat/03"]
    assert [row["item"] for row in done.rejected] == ["cat/00"]


def test_a_header_check_takes_headers_at_their_word(tmp_path: Path) -> None:
    sound(tmp_path / "x" / "a.wav")
    samples = np.zeros(8000)
    samples[5] = np.nan
    soundfile.write(tmp_path / "x" / "b.wav", samples, RATE, subtype="FLOAT")
    done = Run(tmp_path, recipe=str(tmp_path / "x"), check="header")
    assert [clip.duration_s for clip in done.manifest] == [0.1, 1.0]
    assert [done.result[f"num_{key}"] for key in ("silent", "clipped", "duplicate_groups")] == [None, None, None]


def test_silence_and_clipping_are_counted_and_said(tmp_path: Path) -> None:
    sound(tmp_path / "x" / "loud.wav", level=50.0)
    sound(tmp_path / "x" / "nothing.wav", level=0.0)
    sound(tmp_path / "x" / "fine.wav")
    done = Run(tmp_path, recipe=str(tmp_path / "x"), split="test")
    assert done.report["silent"] == {"num_clips": 1, "ids": ["nothing"]}
    assert done.report["clipped"] == {"num_clips": 1, "ids": ["loud"]}
    assert done.listener.warnings == [
        "silent clips: 1, first: nothing; see report.json",
        "clipped clips: 1, first: loud; see report.json",
    ]


# Bad input --------------------------------------------------------------------------------------------------------------


def with_bad_files(folder: Path) -> Path:
    corpus(folder, num_clips=2)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no sound\n" * 20)
    soundfile.write(folder / "zero.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.full(10, np.nan), RATE, subtype="FLOAT")
    cut = sound(folder / "cut.wav")
    cut.write_bytes(cut.read_bytes()[:1000])
    return folder


def test_bad_files_are_rejected_with_reasons_and_counted(tmp_path: Path) -> None:
    done = Run(tmp_path, recipe=str(with_bad_files(tmp_path / "x")))
    reasons = {row["item"]: row["reason"] for row in done.rejected}
    assert reasons.keys() == {"empty", "text", "zero", "nan", "cut"}
    assert "is empty (0 bytes)" in reasons["empty"]
    assert "cannot be read as audio" in reasons["text"]
    assert "holds 0 frames" in reasons["zero"]
    assert "NaN or infinite at frame 0" in reasons["nan"]
    assert "truncated, 956 bytes of audio found, 1600 expected" in reasons["cut"]
    assert done.report["num_rejected"] == done.result["num_rejected"] == 5
    assert len(done.manifest) == 2
    assert "5 of 7 items rejected" in done.listener.warnings[0]


def test_strict_makes_any_rejection_an_error_and_still_lists_all(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"--strict: 5 of 7 items rejected \(all in .*rejected.jsonl\), first: cut: "):
        run(tmp_path, recipe=str(with_bad_files(tmp_path / "x")), strict=True)
    assert len(read_rejected(tmp_path / "run")) == 5
    assert not (tmp_path / "run" / "manifest.jsonl").exists()


def test_no_usable_clip_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.wav").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"no usable clip: 1 of 1 items rejected .* first: a: .*is empty \(0 bytes\)"):
        run(tmp_path, recipe=str(tmp_path / "x"))
    assert not (tmp_path / "run" / "manifest.jsonl").exists()


def test_a_folder_without_sound_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(ManifestError, match="no clip found, expected at least one"):
        run(tmp_path, recipe=str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"recipe": "foldr"}, UnknownNameError, "unknown recipe 'foldr': did you mean 'folder'?.*or name a folder or a table"),
        ({"recipe": "./nope"}, ManifestError, r"\./nope: no such file or folder"),
        ({"recipe": "nope.csv"}, ManifestError, r"nope\.csv: no such file or folder"),
        ({"recipe": "folder"}, ConfigError, "recipe folder: no source given, .*clapkit prepare folder SOURCE"),
        ({"recipe": "folder", "source": "/nope/nope"}, ManifestError, "/nope/nope: no such file or folder"),
        ({"recipe": "folder", "source": ".", "options": ("capshuns=none",)}, UnknownNameError, "did you mean 'captions'?"),
        ({"recipe": "folder", "source": ".", "options": ("captions=all",)}, ConfigError, "expected one of auto, folder"),
        ({"recipe": "folder", "source": ".", "limit": 0}, ConfigError, "--limit 0: expected at least 1"),
        ({"recipe": "folder", "source": ".", "workers": 0}, ConfigError, "--workers 0: expected at least 1"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, **given)


def test_folders_and_tables_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "t.CSV").write_text("audio\n")
    (tmp_path / "notes.txt").write_text("x")
    assert prepare.recognise(None, None) == ("synth", None)
    assert prepare.recognise(str(tmp_path), None) == ("folder", tmp_path)
    assert prepare.recognise(str(tmp_path / "t.CSV"), None) == ("table", tmp_path / "t.CSV")
    assert prepare.recognise("esc10", "corpus") == ("esc10", Path("corpus"))
    with pytest.raises(ManifestError, match=r"notes\.txt: is no table, expected a folder or a \.csv"):
        prepare.recognise(str(tmp_path / "notes.txt"), None)
    with pytest.raises(ConfigError, match="two sources found"):
        prepare.recognise(str(tmp_path), str(tmp_path))
