from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes.gtzan import GENRES
from clapkit.data.splits import Shares
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

LISTS = {
    "train_filtered.txt": "blues/blues.00000.wav\r\nhiphop/hiphop.00099.wav\r\n",
    "valid_filtered.txt": "jazz/jazz.00054.wav\n\n",
    "test_filtered.txt": "rock/rock.00001.wav\n",
}


def corpus(folder: Path, *, genres: str = "genres", suffix: str = "wav", lists: dict[str, str] | None = None) -> Path:
    """All 1,000 files."""
    for genre in GENRES:
        (folder / genres / genre).mkdir(parents=True)
        for number in range(100):
            (folder / genres / genre / f"{genre}.{number:05d}.{suffix}").write_bytes(b"")
    for name, text in (lists or {}).items():
        (folder / name).write_text(text)
    return folder


def read_all(
    source: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Clip | Rejection], CorpusDescription]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    recipe = registry.build("recipe", "gtzan", options)
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    return items, recipe.describe([item for item in items if isinstance(item, Clip)])


@pytest.mark.parametrize(("genres", "suffix"), [("genres", "wav"), ("genres_original", "au"), ("Data/genres_original", "wav")])
def test_a_thousand_files_in_ten_genres_are_found_in_the_known_layouts(tmp_path: Path, genres: str, suffix: str) -> None:
    items, description = read_all(corpus(tmp_path, genres=genres, suffix=suffix))
    assert Counter(item.labels for item in items if isinstance(item, Clip)).most_common(1)[0][1] == 100
    assert len(items) == 1000
    assert items[0] == Clip(
        "gtzan/blues.00000",
        f"{genres}/blues/blues.00000.{suffix}",
        labels=("blues",),
        source="gtzan/blues.00000",
        extra={"genre": "blues"},
    )
    assert (description.facts["splits"], description.official) == ("drawn", {})


def test_the_folder_of_the_genres_is_a_source_too(tmp_path: Path) -> None:
    items, _ = read_all(corpus(tmp_path) / "genres")
    assert isinstance(items[0], Clip)
    assert (len(items), items[0].audio) == (1000, "blues/blues.00000.wav")


@pytest.mark.parametrize(("names", "label"), [("words", "hip hop"), ("blanks", "hiphop"), ("raw", "hiphop")])
def test_the_spelling_of_genres_is_an_option(tmp_path: Path, names: str, label: str) -> None:
    items, _ = read_all(corpus(tmp_path), {"names": names})
    assert label in {item.labels[0] for item in items if isinstance(item, Clip)}


def test_the_corrupt_clip_is_handed_on_to_be_rejected_by_decoding(tmp_path: Path) -> None:
    items, _ = read_all(corpus(tmp_path))
    assert "gtzan/jazz.00054" in {item.id for item in items if isinstance(item, Clip)}


def test_filtered_lists_give_the_splits_and_the_rest_is_left_out_aloud(tmp_path: Path) -> None:
    items, description = read_all(corpus(tmp_path, lists=LISTS))
    found = {item.id: item.split for item in items if isinstance(item, Clip)}
    assert found == {
        "gtzan/blues.00000": "train",
        "gtzan/hiphop.00099": "train",
        "gtzan/jazz.00054": "val",
        "gtzan/rock.00001": "test",
    }
    assert Counter(item.kind for item in items if isinstance(item, Rejection)) == {"excluded": 996}
    assert description.official == {"train": 443, "val": 197, "test": 290}
    assert description.facts["splits"] == "filtered"


def test_lists_can_be_ignored(tmp_path: Path) -> None:
    items, description = read_all(corpus(tmp_path, lists=LISTS), {"splits": "none"})
    assert {item.split for item in items if isinstance(item, Clip)} == {None}
    assert (len(items), description.facts["official_clips"]) == (1000, 1000)


def test_missing_audio_is_counted_in_its_split(tmp_path: Path) -> None:
    corpus(tmp_path, lists=LISTS)
    (tmp_path / "genres" / "rock" / "rock.00001.wav").unlink()
    (missing,) = [i for i in read_all(tmp_path)[0] if isinstance(i, Rejection) and i.kind == "missing"]
    assert (missing.item, missing.split) == ("gtzan/rock.00001", "test")
    (missing,) = [i for i in read_all(tmp_path, {"splits": "none"})[0] if isinstance(i, Rejection)]
    assert (missing.item, missing.kind, missing.split) == ("gtzan/rock.00001", "missing", None)


def test_a_genre_that_is_not_there_is_missing_whole(tmp_path: Path) -> None:
    (corpus(tmp_path) / "genres" / "pop").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "pop.00000.wav").unlink()
    for path in (tmp_path / "elsewhere").iterdir():
        path.unlink()
    missing = [item for item in read_all(tmp_path)[0] if isinstance(item, Rejection)]
    assert (len(missing), missing[0].item) == (100, "gtzan/pop.00000")


def test_sounds_that_are_no_clips_are_rejected_and_other_files_are_not(tmp_path: Path) -> None:
    corpus(tmp_path)
    for name in ("blues/blues.00100.wav", "blues/rock.00001.wav", "blues/notes.txt", "blues/._blues.00000.wav"):
        (tmp_path / "genres" / name).write_bytes(b"")
    found = [item.item for item in read_all(tmp_path)[0] if isinstance(item, Rejection)]
    assert found == ["genres/blues/blues.00100.wav", "genres/blues/rock.00001.wav"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_filtered.txt": "blues/blues.00000.wav\n"}, r"test_filtered\.txt: blues\.00000 is also in train_filtered\.txt"),
        ({"test_filtered.txt": "blues/blues.100.wav\n"}, r"line 1: 'blues/blues\.100\.wav', expected a clip such as"),
        ({"test_filtered.txt": "tuba/tuba.00001.wav\n"}, r"line 1: 'tuba/tuba\.00001\.wav', expected a clip such as"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_all(corpus(tmp_path, lists=LISTS | changes))


def test_one_list_without_the_others_is_refused(tmp_path: Path) -> None:
    corpus(tmp_path)
    with pytest.raises(ManifestError, match=r"no train_filtered\.txt found, expected .* get all three, or pass -O splits=none"):
        read_all(tmp_path, {"splits": "filtered"})
    (tmp_path / "train_filtered.txt").write_text(LISTS["train_filtered.txt"])
    with pytest.raises(ManifestError, match=r"no valid_filtered\.txt found"):
        read_all(tmp_path)


def test_what_is_no_gtzan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no GTZAN, no genres/blues or another genre found"):
        read_all(tmp_path)
    with pytest.raises(ConfigError, match="--audio-dir: gtzan finds its audio in the source folder"):
        read_all(tmp_path, audio_dir=tmp_path)


def test_shares_of_drawn_splits_are_options() -> None:
    recipe = registry.build("recipe", "gtzan", {"val_share": "0.2", "test_share": "0.3"})
    assert recipe.shares == Shares(val=0.2, test=0.3, required=True)
    with pytest.raises(ConfigError, match="leave something to train"):
        registry.build("recipe", "gtzan", {"val_share": "0.5", "test_share": "0.5"})
