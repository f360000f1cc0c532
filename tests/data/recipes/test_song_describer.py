from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

HEADER = "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n"
ROWS = [
    '1,1134148,"Guitar, slow.",True,0,artist_1,album_1,48/1134148.mp3,120.0',
    "2,1004300,Piano.,False,1,artist_2,album_2,00/1004300.mp3,99.5",
    "3,1134148,Second caption.,False,0,artist_1,album_1,48/1134148.mp3,120.0",
    "4,5,Drums.,True,0,artist_1,album_3,05/5.mp3,120.0",
]


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def corpus(folder: Path, rows: list[str] = ROWS) -> Path:
    (folder / "song_describer.csv").write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    for name in ("48/1134148", "00/1004300", "05/5"):
        touch(folder / f"audio/{name}.2min.mp3")
    return folder


def read(source: Path, options: dict[str, Any] | None = None) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "song_describer", options)
    request = RecipeRequest(source=source, audio_dir=None, output_dir=source, seed=0, workers=1, reporter=SilentReporter())
    items = list(recipe.clips(request))
    clips = [item for item in items if isinstance(item, Clip)]
    return clips, [item for item in items if isinstance(item, Rejection)], recipe.describe(clips)


def test_captions_of_a_track_are_gathered_from_rows_that_are_apart(tmp_path: Path) -> None:
    clips, rejections, description = read(corpus(tmp_path))
    assert rejections == []
    assert [(clip.id, clip.audio, [caption.text for caption in clip.captions]) for clip in clips] == [
        ("song_describer/1134148", "audio/48/1134148.2min.mp3", ["Guitar, slow.", "Second caption."]),
        ("song_describer/1004300", "audio/00/1004300.2min.mp3", ["Piano."]),
        ("song_describer/5", "audio/05/5.2min.mp3", ["Drums."]),
    ]
    assert {clip.split for clip in clips} == {"test"}
    assert clips[0].source == "song_describer/1134148"
    assert clips[0].extra == {"artist": "artist_1", "album": "album_1"}
    assert description.official == {"test": 706}


@pytest.mark.parametrize("name", ["audio/48/1134148.mp3", "1134148.wav", "1134148.2min.flac", "elsewhere/1134148.2min.mp3"])
def test_audio_is_found_under_other_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "song_describer.csv").write_text(HEADER + ROWS[0] + "\n", encoding="utf-8")
    touch(tmp_path / name)
    clips, _, _ = read(tmp_path)
    assert [clip.audio for clip in clips] == [name]


def test_the_valid_subset_leaves_out_captions_and_tracks(tmp_path: Path) -> None:
    clips, rejections, description = read(corpus(tmp_path), {"subset": "valid"})
    assert [[caption.text for caption in clip.captions] for clip in clips] == [["Guitar, slow."], ["Drums."]]
    assert [(r.item, r.kind) for r in rejections] == [
        ("song_describer/1134148 caption 2", "excluded"),
        ("song_describer/1004300", "excluded"),
    ]
    assert description.official == {"test": 546}
    assert description.facts["subset"] == "valid"


def test_missing_audio_is_counted(tmp_path: Path) -> None:
    (corpus(tmp_path) / "audio/05/5.2min.mp3").unlink()
    clips, (rejection,), _ = read(tmp_path)
    assert len(clips) == 2
    assert (rejection.item, rejection.kind, rejection.split) == ("song_describer/5", "missing", "test")


def test_an_empty_caption_is_refused_and_the_track_stays(tmp_path: Path) -> None:
    rows = [*ROWS, "5,5, ,True,0,artist_1,album_3,05/5.mp3,120.0"]
    clips, (rejection,), _ = read(corpus(tmp_path, rows))
    assert len(clips) == 3
    assert (rejection.item, rejection.check) == ("song_describer/5 caption 2", "empty_caption")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("5,,Text.,True,0,a,b,05/5.mp3,1", "empty track_id"),
        ("5,5,Text.,maybe,0,a,b,05/5.mp3,1", "is_valid_subset 'maybe', expected True or False"),
        ("5,5,Text.,True,0,a,b,06/6.mp3,1", "path '06/6.mp3', but '05/5.mp3' on line 5"),
        ("5,5,Text, more,True,0,a,b,05/5.mp3,1", "10 cells found, 9 expected"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(tmp_path: Path, row: str, match: str) -> None:
    clips, (rejection,), _ = read(corpus(tmp_path, [*ROWS, row]))
    assert len(clips) == 3
    assert rejection.item == "song_describer.csv line 6"
    assert match in rejection.reason


def test_a_folder_without_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no song_describer\.csv found"):
        read(tmp_path)


def test_a_table_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "song_describer.csv").write_text("track_id,caption\n1,x\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="no column 'is_valid_subset'"):
        read(tmp_path)


def test_an_unknown_subset_is_refused() -> None:
    with pytest.raises(ConfigError, match="subset=some: expected one of all, valid"):
        registry.build("recipe", "song_describer", {"subset": "some"})
