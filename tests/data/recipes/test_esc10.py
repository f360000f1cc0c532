import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes.esc10 import CLASSES
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, RecipeRequest, Rejection, SilentReporter


def corpus(folder: Path, *, num_folds: int = 5) -> Path:
    """Ten classes; in each fold four recordings, the first of them with two takes."""
    for number, name in enumerate(CLASSES, start=1):
        place = folder / f"{number:03d} - {name}"
        place.mkdir()
        for fold in range(1, num_folds + 1):
            for clip_id, take in [("10", "A"), ("10", "B"), ("20", "A"), ("30", "A"), ("40", "A")]:
                (place / f"{fold}-{fold}{number:02d}{clip_id}-{take}.ogg").write_bytes(b"")
    (folder / "README.txt").write_text("attributions")
    return folder


def read(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip | Rejection]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    return list(registry.build("recipe", "esc10", options).clips(RecipeRequest(source=source, **request)))


def clips(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip]:
    return [item for item in read(source, options, **changes) if isinstance(item, Clip)]


def test_a_file_name_becomes_id_fold_and_source(tmp_path: Path) -> None:
    first = clips(corpus(tmp_path))[0]
    assert (first.id, first.audio) == ("esc10/1-10110-A", "001 - Dog bark/1-10110-A.ogg")
    assert (first.fold, first.source, first.labels) == (1, "freesound/10110", ("dog barking",))
    assert first.captions[0].text == "A dog is barking."


def test_the_captions_of_a_class_differ_and_belong_to_no_other_class() -> None:
    sentences = [sentence for _, captions in CLASSES.values() for sentence in captions]
    assert len(set(sentences)) == len(sentences)
    assert {len(captions) for _, captions in CLASSES.values()} == {5}
    assert all(captions[-1] == label for label, captions in CLASSES.values())


def test_the_last_fold_is_test_and_about_half_of_the_fold_before_is_val(tmp_path: Path) -> None:
    found = Counter((clip.fold, clip.split) for clip in clips(corpus(tmp_path)))
    assert {key: count for key, count in found.items() if key[0] != 4} == {
        (1, "train"): 50,
        (2, "train"): 50,
        (3, "train"): 50,
        (5, "test"): 50,
    }
    # Half of five clips is rounded to two: one recording of two takes or two of one, for each of ten classes.
    assert (found[4, "val"], found[4, "train"]) == (20, 30)


@pytest.mark.parametrize(("test_fold", "val_fold"), [("5", 4), ("2", 1), ("1", 5)])
def test_takes_of_a_recording_share_a_split_for_any_test_fold(tmp_path: Path, test_fold: str, val_fold: int) -> None:
    found = clips(corpus(tmp_path), {"test_fold": test_fold}, seed=7)
    assert len({(clip.source, clip.split) for clip in found}) == len({clip.source for clip in found})
    assert {clip.fold for clip in found if clip.split == "val"} == {val_fold}
    assert {clip.fold for clip in found if clip.split == "test"} == {int(test_fold)}
    assert {clip.labels[0] for clip in found if clip.split == "val"} == {label for label, _ in CLASSES.values()}


def test_the_seed_draws_val_and_nothing_else(tmp_path: Path) -> None:
    corpus(tmp_path)
    assert clips(tmp_path, seed=1) == clips(tmp_path, seed=1)
    first, second = clips(tmp_path, seed=1), clips(tmp_path, seed=2)
    assert first != second
    assert [clip.id for clip in first] == [clip.id for clip in second]


@pytest.mark.parametrize(("share", "num_val"), [("0", 0), ("1", 50)])
def test_the_share_of_val_goes_from_nothing_to_the_whole_fold(tmp_path: Path, share: str, num_val: int) -> None:
    found = clips(corpus(tmp_path), {"val_share": share})
    assert sum(clip.split == "val" for clip in found) == num_val


def test_malformed_names_and_unknown_classes_are_rejected(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "001 - Dog bark" / "woof.ogg").write_bytes(b"")
    (tmp_path / "011 - Tuba").mkdir()
    found = [item for item in read(tmp_path) if isinstance(item, Rejection)]
    assert [item.item for item in found] == ["001 - Dog bark/woof.ogg", "011 - Tuba"]
    assert "expected fold-clip_id-take such as 1-100032-A" in found[0].reason
    assert "no class of ESC-10" in found[1].reason


def test_a_folder_that_is_no_esc10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is no ESC-10, no folder such as '001 - Dog bark'"):
        read(tmp_path)
    with pytest.raises(ManifestError, match="is no folder"):
        read(tmp_path / "nope")


def test_folds_that_are_not_there_or_too_few_are_refused(tmp_path: Path) -> None:
    corpus(tmp_path, num_folds=2)
    with pytest.raises(ManifestError, match=r"no clip in test_fold 9, folds found: \[1, 2\]"):
        read(tmp_path, {"test_fold": "9"})
    with pytest.raises(ManifestError, match=r"not enough data for the split: folds \[1, 2\] found, expected at least 3"):
        read(tmp_path)


def test_options_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="val_share=1.5: expected a share between 0 and 1"):
        read(tmp_path, {"val_share": "1.5"})
    with pytest.raises(ConfigError, match="--audio-dir: esc10 finds"):
        read(tmp_path, audio_dir=tmp_path)


@pytest.mark.skipif("CLAPKIT_ESC10" not in os.environ, reason="set CLAPKIT_ESC10 to the folder of the real corpus")
def test_the_real_corpus_has_400_clips_of_304_recordings() -> None:
    found = clips(Path(os.environ["CLAPKIT_ESC10"]))
    assert len(found) == 400
    assert len({clip.source for clip in found}) == 304
    assert set(Counter(clip.fold for clip in found).values()) == {80}
