from collections import Counter
from pathlib import Path

import pytest

from clapkit.data.recipes._folds import check_val_share, split_by_fold
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip

CORPUS = Path("corpus")


def corpus(*, num_folds: int = 4) -> list[Clip]:
    """Two classes; in each fold and class one recording of three clips, and three of one."""
    return [
        Clip(f"{fold}{label}{number}{take}", "a.wav", labels=(label,), fold=fold, source=f"{fold}{label}{number}")
        for fold in range(1, num_folds + 1)
        for label in ("cat", "dog")
        for number, num_takes in enumerate((3, 1, 1, 1))
        for take in range(num_takes)
    ]


def split(clips: list[Clip], *, test_fold: int | None = None, val_share: float = 0.5, seed: int = 0) -> list[Clip]:
    return split_by_fold(clips, test_fold=test_fold, val_share=val_share, seed=seed, corpus=CORPUS)


def test_the_last_fold_is_test_half_of_the_one_before_val_and_the_rest_train() -> None:
    found = Counter((clip.fold, clip.split) for clip in split(corpus()))
    # 6 clips a class and fold; half of them is 3, which 3 + 0 and 1 + 1 + 1 both make up.
    assert found == {(1, "train"): 12, (2, "train"): 12, (3, "train"): 6, (3, "val"): 6, (4, "test"): 12}


def test_clips_keep_their_order_and_everything_but_the_split() -> None:
    clips = corpus()
    found = split(clips)
    assert [clip.id for clip in found] == [clip.id for clip in clips]
    assert [(clip.fold, clip.source, clip.labels) for clip in found] == [(c.fold, c.source, c.labels) for c in clips]


@pytest.mark.parametrize("seed", range(5))
def test_no_recording_is_torn_apart_and_every_class_is_validated(seed: int) -> None:
    found = split(corpus(), seed=seed)
    assert len({(clip.source, clip.split) for clip in found}) == len({clip.source for clip in found})
    assert {clip.labels[0] for clip in found if clip.split == "val"} == {"cat", "dog"}


def test_before_the_first_fold_comes_the_last() -> None:
    found = split(corpus(), test_fold=1)
    assert {clip.fold for clip in found if clip.split == "test"} == {1}
    assert {clip.fold for clip in found if clip.split == "val"} == {4}


def test_a_fold_that_is_missing_between_others_is_skipped() -> None:
    found = split([clip for clip in corpus() if clip.fold != 3])
    assert {clip.fold for clip in found if clip.split == "val"} == {2}


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_clips() -> None:
    clips = corpus()
    forwards = {clip.id: clip.split for clip in split(clips, seed=3)}
    assert forwards == {clip.id: clip.split for clip in split(clips[::-1], seed=3)}
    assert any(forwards != {clip.id: clip.split for clip in split(clips, seed=seed)} for seed in range(4, 9))


@pytest.mark.parametrize(("val_share", "num_val"), [(0.0, 0), (1.0, 12)])
def test_the_share_goes_from_nothing_to_the_whole_fold(val_share: float, num_val: int) -> None:
    assert sum(clip.split == "val" for clip in split(corpus(), val_share=val_share)) == num_val


def test_clips_without_source_are_their_own() -> None:
    clips = [Clip(str(n), "a.wav", labels=("dog",), fold=1 + n % 3) for n in range(12)]
    found = Counter((clip.fold, clip.split) for clip in split(clips))
    assert found == {(1, "train"): 4, (2, "train"): 2, (2, "val"): 2, (3, "test"): 4}


def test_folds_that_are_not_there_or_too_few_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"corpus: no clip in test_fold 9, folds found: \[1, 2, 3, 4\]"):
        split(corpus(), test_fold=9)
    with pytest.raises(ManifestError, match=r"folds \[1, 2\] found, expected at least 3"):
        split(corpus(num_folds=2))
    with pytest.raises(ManifestError, match=r"no clip in test_fold None, folds found: \[\]"):
        split([])


def test_only_shares_are_taken_for_shares() -> None:
    check_val_share(0.0)
    check_val_share(1.0)
    for val_share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="expected a share between 0 and 1"):
            check_val_share(val_share)
