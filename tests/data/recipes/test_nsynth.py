import json
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ManifestError, UnknownNameError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter


def note(instrument: str, family: str, pitch: int) -> dict[str, Any]:
    return {
        "note": 1,
        "note_str": f"{instrument}-{pitch:03d}-025",
        "instrument": 7,
        "instrument_str": instrument,
        "instrument_family": 9,
        "instrument_family_str": family,
        "instrument_source": 0,
        "instrument_source_str": "acoustic",
        "pitch": pitch,
        "velocity": 25,
        "sample_rate": 16000,
        "qualities": [0, 1],
        "qualities_str": ["dark"],
    }


NOTES = {
    "nsynth-train": [note("bass_synthetic_033", "bass", 22), note("synth_lead_synthetic_000", "synth_lead", 40)],
    "nsynth-valid": [note("keyboard_acoustic_004", "keyboard", 60)],
    "nsynth-test": [note("keyboard_acoustic_004", "keyboard", 61)],
}


def corpus(folder: Path) -> Path:
    for name, notes in NOTES.items():
        (folder / name / "audio").mkdir(parents=True)
        (folder / name / "examples.json").write_text(json.dumps({found["note_str"]: found for found in notes}))
        for found in notes:
            (folder / name / "audio" / f"{found['note_str']}.wav").write_bytes(b"")
    return folder


def read_all(source: Path, **changes: Any) -> tuple[list[Clip | Rejection], CorpusDescription]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    recipe = registry.build("recipe", "nsynth")
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    return items, recipe.describe([item for item in items if isinstance(item, Clip)])


def test_a_note_becomes_a_clip_labelled_by_the_family_of_its_instrument(tmp_path: Path) -> None:
    items, _ = read_all(corpus(tmp_path))
    assert items[1] == Clip(
        "nsynth/synth_lead_synthetic_000-040-025",
        "nsynth-train/audio/synth_lead_synthetic_000-040-025.wav",
        labels=("synth lead",),
        split="train",
        source="nsynth/synth_lead_synthetic_000",
        extra={
            "instrument_str": "synth_lead_synthetic_000",
            "instrument_source_str": "acoustic",
            "pitch": 40,
            "velocity": 25,
            "qualities_str": ["dark"],
        },
    )


def test_the_splits_are_official_and_valid_is_val(tmp_path: Path) -> None:
    items, description = read_all(corpus(tmp_path))
    assert [item.split for item in items if isinstance(item, Clip)] == ["train", "train", "val", "test"]
    assert description.official == {"train": 289205, "val": 12678, "test": 4096}
    assert sum(description.official.values()) == 305979
    assert description.warnings == []


def test_notes_of_one_instrument_share_their_source_even_across_valid_and_test(tmp_path: Path) -> None:
    items, _ = read_all(corpus(tmp_path))
    assert len({item.source for item in items if isinstance(item, Clip)}) == 3


def test_missing_audio_is_counted_in_its_split(tmp_path: Path) -> None:
    (corpus(tmp_path) / "nsynth-test" / "audio" / "keyboard_acoustic_004-061-025.wav").unlink()
    (missing,) = [item for item in read_all(tmp_path)[0] if isinstance(item, Rejection)]
    assert (missing.item, missing.kind, missing.split) == ("nsynth/keyboard_acoustic_004-061-025", "missing", "test")


def test_a_note_of_two_splits_is_refused_in_the_second(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    (folder / "nsynth-test" / "examples.json").write_text((folder / "nsynth-valid" / "examples.json").read_text())
    items, _ = read_all(folder)
    assert items[-1] == Rejection(
        "nsynth/keyboard_acoustic_004-060-025",
        "nsynth-test lists it again, first on nsynth-valid, expected one row for a clip; drop one of them",
        split="test",
    )


def test_the_folder_of_one_split_is_a_source_and_the_others_are_named(tmp_path: Path) -> None:
    items, description = read_all(corpus(tmp_path) / "nsynth-test")
    (clip,) = items
    assert isinstance(clip, Clip)
    assert (clip.audio, clip.split) == ("audio/keyboard_acoustic_004-061-025.wav", "test")
    assert [warning.split()[0] for warning in description.warnings] == ["nsynth-train", "nsynth-valid"]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"instrument_family_str": "tuba", "instrument_str": "t"}, "instrument_family_str 'tuba', expected one of bass, brass"),
        ({"instrument_family_str": "bass"}, "instrument_str None, expected the name of an instrument"),
        ([1], "instrument_family_str None"),
    ],
)
def test_a_note_without_family_or_instrument_is_rejected(tmp_path: Path, attributes: Any, reason: str) -> None:
    (corpus(tmp_path) / "nsynth-test" / "examples.json").write_text(json.dumps({"x": attributes}))
    found = read_all(tmp_path)[0][-1]
    assert isinstance(found, Rejection)
    assert (found.item, found.kind) == ("nsynth/x", "bad")
    assert reason in found.reason


def test_what_is_no_nsynth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no NSynth, no nsynth-train/examples\.json, nsynth-valid or nsynth-test found"):
        read_all(tmp_path)
    (corpus(tmp_path) / "nsynth-test" / "examples.json").write_text("[]")
    with pytest.raises(ManifestError, match=r"examples\.json: holds a list, expected one object"):
        read_all(tmp_path)
    with pytest.raises(UnknownNameError, match="option of recipe 'nsynth'"):
        registry.build("recipe", "nsynth", {"label": "pitch"})
