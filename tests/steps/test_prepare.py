import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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
        self.said: list[str] = []
        self.warnings: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

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
        ({"recipe": "folder", "source": ".", "split": " "}, ConfigError, "--split ' ': expected a name without : and ,"),
        ({"recipe": "folder", "source": ".", "split": "a,b"}, ConfigError, "--split 'a,b': expected a name without : and ,"),
        ({"recipe": "folder", "source": ".", "split": "a:b"}, ConfigError, "--split 'a:b': expected a name without : and ,"),
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


# Which clips and captions -----------------------------------------------------------------------------------------------


def labelled(folder: Path) -> Path:
    """Three clips in two classes, without captions."""
    for i in range(3):
        sound(folder / f"{i}.wav", key=i)
    (folder / "t.csv").write_text("audio,label,split\n0.wav,dog,train\n1.wav,cat;dog,train\n2.wav,cat,test\n")
    return folder / "t.csv"


def spoken(done: Run) -> list[list[str]]:
    return [[caption.text for caption in clip.captions] for clip in done.manifest]


def test_a_filter_keeps_what_satisfies_it_and_lists_the_rest_as_excluded(tmp_path: Path) -> None:
    done = Run(tmp_path, recipe=str(labelled(tmp_path)), where="'cat' in labels and duration_s < 1", strict=True)
    assert [clip.id for clip in done.manifest] == ["1", "2"]
    assert done.rejected == [
        {
            "item": "0",
            "reason": "does not satisfy --where 'cat' in labels and duration_s < 1",
            "kind": "excluded",
            "split": "train",
        }
    ]
    assert (done.result["num_excluded"], done.result["num_rejected"]) == (1, 0)
    assert any(line.startswith("1 of 3 items left out as asked") for line in done.listener.said)
    assert done.listener.warnings == []


def test_a_filter_that_keeps_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no usable clip: 3 of 3 items left out as asked .*first: 0: does not satisfy"):
        run(tmp_path, recipe=str(labelled(tmp_path)), where="duration_s > 60")


def test_captions_in_other_languages_are_left_out(tmp_path: Path) -> None:
    for i in range(2):
        sound(tmp_path / f"{i}.wav", key=i)
    (tmp_path / "t.csv").write_text(
        "audio,caption,lang,split\n0.wav,Rain.,en,train\n0.wav,Regen.,de,train\n1.wav,Wind und Regen.,de,train\n"
    )
    done = Run(tmp_path, recipe=str(tmp_path / "t.csv"), languages="en")
    assert spoken(done) == [["Rain."]]
    assert done.report["languages"] == {"en": 1}
    assert [(row["item"], row["kind"]) for row in done.rejected] == [("1", "excluded")]


def test_a_language_is_one_whatever_its_case(tmp_path: Path) -> None:
    sound(tmp_path / "0.wav")
    rows = ["audio,caption,lang,split", "Rain.,EN", "Rain falls.,en", "Chuva.,pt_br", "Regen.,de"]
    (tmp_path / "t.csv").write_text("\n".join([rows[0], *(f"0.wav,{row},train" for row in rows[1:])]))
    done = Run(tmp_path, recipe=str(tmp_path / "t.csv"), languages="En,pt-BR")
    assert done.report["languages"] == {"en": 2, "pt-BR": 1}
    assert [caption.lang for caption in done.manifest.clips[0].captions] == ["en", "en", "pt-BR"]
    assert done.report["fingerprint"] == done.manifest.fingerprint


def test_labels_become_captions_where_a_corpus_has_no_others_and_that_is_said(tmp_path: Path) -> None:
    done = Run(tmp_path, recipe=str(labelled(tmp_path)))
    assert spoken(done) == [["This is a sound of dog."], ["This is a sound of cat and dog."], ["This is a sound of cat."]]
    assert "no captions, only labels: captions are made with --template 'This is a sound of {}.'" in done.listener.said


def test_captions_that_are_there_keep_the_default_template_away(tmp_path: Path) -> None:
    for i in range(2):
        sound(tmp_path / f"{i}.wav", key=i)
    (tmp_path / "t.jsonl").write_text(
        '{"audio": "0.wav", "label": "dog", "caption": "Woof."}\n{"audio": "1.wav", "label": "cat", "caption": "Meow."}\n'
    )
    done = Run(tmp_path, recipe=str(tmp_path / "t.jsonl"), split="test")
    assert spoken(done) == [["Woof."], ["Meow."]]
    assert not any("--template" in line for line in done.listener.said)
    asked = Run(tmp_path, recipe=str(tmp_path / "t.jsonl"), split="test", template=("{}!",))
    assert spoken(asked) == [["Woof.", "dog!"], ["Meow.", "cat!"]]


def test_no_template_and_several_templates(tmp_path: Path) -> None:
    table = labelled(tmp_path)
    assert spoken(Run(tmp_path, recipe=str(table), template=("none",))) == [[], [], []]
    two = Run(tmp_path, recipe=str(table), template=("a {}", "the {}"))
    assert spoken(two) == [["a dog", "the dog"], ["a cat and dog", "the cat and dog"], ["a cat", "the cat"]]
    assert two.result["num_captions"] == 6


def test_a_template_in_a_label_is_not_filled_in_again(tmp_path: Path) -> None:
    sound(tmp_path / "0.wav")
    (tmp_path / "t.csv").write_text("audio,label,split\n0.wav,odd {} name,train\n")
    assert spoken(Run(tmp_path, recipe=str(tmp_path / "t.csv"), template=("a {}",))) == [["a odd {} name"]]


# Findings that reject ---------------------------------------------------------------------------------------------------


def test_silence_can_be_dropped(tmp_path: Path) -> None:
    source = corpus(tmp_path / "x", num_clips=3)
    sound(source / "dog" / "nothing.wav", level=0.0)
    done = Run(tmp_path, recipe=str(source), drop="silent, clipped", split="test")
    assert len(done.manifest) == 3
    assert done.rejected == [
        {"item": "dog/nothing", "reason": "RMS 0 (--drop silent)", "kind": "excluded", "check": "silent"},
    ]
    assert done.report["silent"]["num_clips"] == 0
    assert done.report["checks"]["silent"]["num_items"] == 1
    assert (done.result["num_rejected"], done.result["num_excluded"]) == (0, 1)


def test_of_copies_the_first_stays(tmp_path: Path) -> None:
    for name, key in (("a", 1), ("b", 2), ("c", 1), ("d", 1)):
        sound(tmp_path / "x" / f"{name}.wav", key=key)
    done = Run(tmp_path, recipe=str(tmp_path / "x"), drop="duplicate", split="test")
    assert [clip.id for clip in done.manifest] == ["a", "b"]
    assert [(row["item"], row["check"]) for row in done.rejected] == [("c", "duplicate"), ("d", "duplicate")]
    assert done.report["duplicates"]["num_groups"] == 0


def test_of_clips_that_sound_the_same_the_first_stays(tmp_path: Path, write_melody: Any) -> None:
    for name, key, gain in (("a", 1, 0.5), ("b", 1, 0.2), ("c", 2, 0.5)):
        write_melody(tmp_path / "x" / f"{name}.wav", key, gain=gain)
    done = Run(tmp_path, recipe=str(tmp_path / "x"), drop="near_duplicate", split="test")
    assert [clip.id for clip in done.manifest] == ["a", "c"]
    assert [(row["item"], row["check"]) for row in done.rejected] == [("b", "near_duplicate")]
    assert done.report["near_duplicates"]["num_groups"] == 0


def test_a_finding_about_a_caption_drops_the_caption_or_its_clip(tmp_path: Path) -> None:
    for i in range(3):
        sound(tmp_path / f"{i}.wav", key=i)
    (tmp_path / "t.csv").write_text("audio,caption\n0.wav,Rain &amp; wind\n0.wav,It rains.\n1.wav,Hail.\n2.wav,A &lt;b&gt; c\n")
    done = Run(tmp_path, recipe=str(tmp_path / "t.csv"), drop="html_entity", split="test")
    assert not any("&" in caption for captions in spoken(done) for caption in captions)
    assert {row["check"] for row in done.rejected} == {"html_entity"}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"drop": "slient"}, UnknownNameError, "unknown check of --drop 'slient': did you mean 'silent'"),
        ({"drop": "truncated"}, UnknownNameError, "unknown check of --drop 'truncated'"),
        ({"drop": "silent", "check": "header"}, ConfigError, "--drop silent: is not looked for with --check header"),
        ({"where": "loudness > 3"}, ConfigError, "no column 'loudness'"),
        ({"template": ("a dog",)}, ConfigError, "--template 'a dog': no place for the label"),
        ({"languages": ","}, ConfigError, "--languages ',': expected language tags"),
        ({"languages": "fr"}, ManifestError, "--languages fr: no caption in any of them, languages found: en"),
        ({"cache_rate": 5}, ConfigError, "--cache-rate 5: no copies are kept"),
        ({"shard_size": 5}, ConfigError, "--shard-size 5: nothing is exported"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, recipe=str(corpus(tmp_path / "x", num_clips=2)), **given)
    assert not (tmp_path / "run" / "manifest.jsonl").exists()


def test_checks_that_need_no_decoding_can_drop_after_a_header_check(tmp_path: Path) -> None:
    sound(tmp_path / "x" / "a.wav")
    sound(tmp_path / "x" / "b.wav", num_frames=80)
    done = Run(tmp_path, recipe=str(tmp_path / "x"), drop="too_short", check="header", split="test")
    assert [clip.id for clip in done.manifest] == ["a"]


# Near duplicates and splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_sound_never_falls_in_two_splits(tmp_path: Path, write_melody: Any, seed: int) -> None:
    for key in range(10):
        write_melody(tmp_path / "x" / f"{key}.wav", key)
        write_melody(tmp_path / "x" / f"{key}_soft.wav", key, gain=0.2)
    done = Run(tmp_path, recipe=str(tmp_path / "x"), seed=seed)
    assert set(done.manifest.splits) == {"train", "val", "test"}
    split_of = {clip.id: clip.split for clip in done.manifest}
    assert all(split_of[f"{key}"] == split_of[f"{key}_soft"] for key in range(10))
    assert done.report["near_duplicates"]["num_groups"] == 10
    assert done.report["near_duplicates"]["num_groups_across_splits"] == 0


# Files ------------------------------------------------------------------------------------------------------------------


def test_every_file_is_listed_once_with_what_was_found_in_it(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", num_channels=2)
    sound(tmp_path / "b.wav", level=0.0)
    (tmp_path / "t.csv").write_text("audio,start_s,end_s\na.wav,0.02,0.05\na.wav,0.05,\nb.wav,,\n")
    done = Run(tmp_path, recipe=str(tmp_path / "t.csv"), split="test")
    table = pd.read_parquet(done.path / "files.parquet")
    assert table["audio"].tolist() == ["a.wav", "b.wav"]
    assert table["num_bytes"].tolist() == [(tmp_path / name).stat().st_size for name in ("a.wav", "b.wav")]
    assert table["num_channels"].tolist() == [2, 1]
    assert table["num_frames"].tolist() == [800, 800]
    assert table["format"].tolist() == ["WAV", "WAV"]
    # A ramp from 0 to 0.5 without its mean is uniform over 0.5: 0.5 / sqrt(12).
    assert table["rms"].tolist() == [pytest.approx(0.5 / 12**0.5, rel=0.001), 0.0]
    assert table["content"].nunique() == 2


def test_after_a_header_check_the_table_of_files_knows_sizes_only(tmp_path: Path) -> None:
    done = Run(tmp_path, recipe=str(corpus(tmp_path / "x", num_clips=2)), check="header", split="test")
    table = pd.read_parquet(done.path / "files.parquet")
    assert table["num_bytes"].tolist() == [1644, 1644]  # 44 of header, 800 samples of 2
    assert table[["content", "landmarks", "rms"]].isna().all(axis=None)


def test_files_of_rejected_clips_are_not_listed(tmp_path: Path) -> None:
    done = Run(tmp_path, recipe=str(with_bad_files(tmp_path / "x")), drop="silent")
    listed = pd.read_parquet(done.path / "files.parquet")["audio"].tolist()
    assert listed == [clip.audio for clip in done.manifest]


def test_rejections_name_what_is_known(tmp_path: Path) -> None:
    done = Run(tmp_path, recipe=str(with_bad_files(tmp_path / "x")), split="test")
    checks = {row["item"]: row["check"] for row in done.rejected}
    assert checks == {
        "cut": "truncated",
        "empty": "empty",
        "nan": "not_finite",
        "text": "unreadable",
        "zero": "empty",
    }
    assert all(row.keys() == {"item", "reason", "kind", "check"} for row in done.rejected)


def test_copies_of_a_file_share_a_split_though_their_sources_differ(tmp_path, call_prepare):
    generator = np.random.default_rng(0)
    rows = ["audio,source,caption"]
    for key in range(20):
        soundfile.write(tmp_path / f"{key}.wav", generator.normal(0, 0.1, 4000), 8000)
        (tmp_path / f"{key}-copy.wav").write_bytes((tmp_path / f"{key}.wav").read_bytes())
        rows += [f"{key}.wav,archive/{key},a", f"{key}-copy.wav,shop/{key},b"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    done = call_prepare(recipe=str(tmp_path / "t.csv"), options=("source=source",))
    split_of = {clip.id: clip.split for clip in done.manifest}
    assert set(split_of.values()) == {"train", "val", "test"}
    assert [key for key in range(20) if split_of[f"{key}"] != split_of[f"{key}-copy"]] == []
