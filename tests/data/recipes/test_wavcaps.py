import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

FREESOUND = {"file_name": "x.mp3", "href": "/h", "tags": ["rain", "roof"], "description": "raw", "author": "a"}
BBC = {"title": "Cat", "description": "d", "category": "['Animals', 'Cats']", "author": "BBC", "href": "h"}
SOUNDBIBLE = {"title": "Bell", "description": "d", "author": "m", "href": "1-bell.html"}
AUTHORS = {"duration": 5.0, "audio": "/mnt/elsewhere/wrong.flac", "download_link": "l"}


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def item(id: str, caption: str = "A sound.", **cells: Any) -> dict[str, Any]:
    return {"id": id, "caption": caption} | AUTHORS | cells


def write(path: Path, *items: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"num_captions_per_audio": 1, "data": items}), encoding="utf-8")
    return path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def corpus(folder: Path) -> Path:
    """Two items of FreeSound, one each of the others; FreeSound and SoundBible share the number 2219."""
    write(folder / "json_files/FreeSound/fsd_final.json", item("2219", **FREESOUND), item("7", **FREESOUND))
    write(folder / "json_files/BBC_Sound_Effects/bbc_final.json", item("NHU05003137", **BBC))
    write(folder / "json_files/SoundBible/sb_final.json", item("2219", **SOUNDBIBLE))
    write(folder / "json_files/AudioSet_SL/as_final.json", item("YYQSuFyFm3Lc.wav"))
    for name in ("FreeSound_flac/2219", "FreeSound_flac/7", "BBC_Sound_Effects_flac/NHU05003137", "SoundBible_flac/2219"):
        touch(folder / f"{name}.flac")
    touch(folder / "AudioSet_SL_flac/YYQSuFyFm3Lc.flac")
    return folder


def read(
    source: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "wavcaps", options)
    request = {"audio_dir": None, "output_dir": source.parent, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    clips = [item for item in items if isinstance(item, Clip)]
    return clips, [item for item in items if isinstance(item, Rejection)], recipe.describe(clips)


def test_every_source_is_read_with_its_global_name(tmp_path: Path) -> None:
    clips, rejections, description = read(corpus(tmp_path))
    assert rejections == []
    assert {(clip.id, clip.audio, clip.source, clip.split) for clip in clips} == {
        ("wavcaps/freesound/2219", "FreeSound_flac/2219.flac", "freesound/2219", "train"),
        ("wavcaps/freesound/7", "FreeSound_flac/7.flac", "freesound/7", "train"),
        ("wavcaps/bbc/NHU05003137", "BBC_Sound_Effects_flac/NHU05003137.flac", "bbc/NHU05003137", "train"),
        ("wavcaps/soundbible/2219", "SoundBible_flac/2219.flac", "soundbible/2219", "train"),
        ("wavcaps/audioset/YQSuFyFm3Lc", "AudioSet_SL_flac/YYQSuFyFm3Lc.flac", "youtube/YQSuFyFm3Lc", "train"),
    }
    assert {clip.captions[0].text for clip in clips} == {"A sound."}
    assert description.facts["items"] == {"audioset": 1, "bbc": 1, "freesound": 2, "soundbible": 1}
    # 262,300 + 31,201 + 1,232 + 108,317
    assert description.official == {"train": 403050}


def test_what_else_the_lists_say_is_kept(tmp_path: Path) -> None:
    clips, _, _ = read(corpus(tmp_path))
    extra = {clip.id: clip.extra for clip in clips}
    assert extra["wavcaps/freesound/7"] == {"description": "raw", "author": "a", "href": "/h", "tags": ["rain", "roof"]}
    assert extra["wavcaps/bbc/NHU05003137"]["category"] == ["Animals", "Cats"]
    assert extra["wavcaps/audioset/YQSuFyFm3Lc"] == {}


@pytest.mark.parametrize(("category", "expected"), [("[Animals", ["[Animals"]), ("Birds", ["Birds"]), ("", None), (None, None)])
def test_a_category_that_is_no_list_stays_text(tmp_path: Path, category: Any, expected: Any) -> None:
    touch(tmp_path / "1.flac")
    clips, _, _ = read(write(tmp_path / "x.json", item("1", **(BBC | {"category": category}))))
    assert clips[0].extra.get("category") == expected


@pytest.mark.parametrize(
    ("cells", "id", "source"),
    [
        (FREESOUND, "1", "freesound"),
        (BBC, "1", "bbc"),
        (SOUNDBIBLE, "1", "soundbible"),
        ({}, "Y-Tok_g_jgE0.wav", "audioset"),
    ],
)
def test_a_source_is_told_by_its_fields_whatever_the_file_is_called(
    tmp_path: Path, cells: dict[str, Any], id: str, source: str
) -> None:
    _, (rejection,), description = read(write(tmp_path / "anything.json", item(id, **cells)))
    assert list(description.facts["items"]) == [source]
    assert rejection.kind == "missing"


def test_a_list_without_telling_fields_is_told_by_its_name(tmp_path: Path) -> None:
    _, _, description = read(write(tmp_path / "sb_final.json", item("1")))
    assert list(description.facts["items"]) == ["soundbible"]


def test_a_source_that_cannot_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not tell its source.* name the file fsd_final.json"):
        read(write(tmp_path / "x.json", item("1")))


def test_flat_audio_is_found(tmp_path: Path) -> None:
    touch(tmp_path / "audio/7.flac")
    touch(tmp_path / "audio/Y-Tok_g_jgE0.flac")
    source = write(tmp_path / "x.json", item("7", **FREESOUND), item("Y-Tok_g_jgE0.wav"))
    clips, _, _ = read(source, audio_dir=tmp_path / "audio")
    assert [(clip.audio, clip.source) for clip in clips] == [
        ("7.flac", "freesound/7"),
        ("Y-Tok_g_jgE0.flac", "youtube/-Tok_g_jgE0"),
    ]


def test_the_audio_of_another_source_with_the_same_number_is_not_taken(tmp_path: Path) -> None:
    (corpus(tmp_path) / "FreeSound_flac/2219.flac").unlink()
    clips, rejections, _ = read(tmp_path)
    assert [(r.item, r.kind, r.split) for r in rejections] == [("wavcaps/freesound/2219", "missing", "train")]
    assert "wavcaps/soundbible/2219" in {clip.id for clip in clips}


def test_one_flat_file_for_two_sources_belongs_to_neither(tmp_path: Path) -> None:
    touch(tmp_path / "2219.flac")
    clips, rejections, _ = read(write(tmp_path / "x.json", item("2219", **FREESOUND), item("2219", **SOUNDBIBLE)))
    assert clips == []
    assert [r.item for r in rejections] == ["wavcaps/freesound/2219", "wavcaps/soundbible/2219"]
    assert "put the audio of each source into a folder named after it" in rejections[0].reason


@pytest.mark.parametrize("duration", [0, 0.0, -1])
def test_items_of_no_length_are_refused(tmp_path: Path, duration: float) -> None:
    touch(tmp_path / "1.flac")
    _, (rejection,), _ = read(write(tmp_path / "x.json", item("1", **(SOUNDBIBLE | {"duration": duration}))))
    assert (rejection.item, rejection.kind) == ("wavcaps/soundbible/1", "bad")
    assert f"duration {duration:g} s in the list, expected more than 0" in rejection.reason


def test_an_empty_caption_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "1.flac")
    clips, (rejection,), _ = read(write(tmp_path / "x.json", item("1", " ", **SOUNDBIBLE)))
    assert clips == []
    assert rejection.check == "empty_caption"


def test_items_that_are_broken_or_come_twice_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "1.flac")
    source = write(tmp_path / "x.json", "text", item("", **SOUNDBIBLE), item("1", **SOUNDBIBLE), item("1", **SOUNDBIBLE))
    clips, rejections, _ = read(source)
    assert len(clips) == 1
    assert [rejection.item for rejection in rejections] == ["x.json item 1", "x.json item 2", "x.json item 4"]


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "1.flac")
    _, (rejection,), _ = read(write(tmp_path / "x.json", item("1", "half \ud83d", **SOUNDBIBLE)))
    assert "is not valid Unicode" in rejection.reason


def test_other_sources_are_left_out_when_some_are_chosen(tmp_path: Path) -> None:
    clips, rejections, description = read(corpus(tmp_path), {"sources": "bbc, SoundBible"})
    assert [clip.id for clip in clips] == ["wavcaps/bbc/NHU05003137", "wavcaps/soundbible/2219"]
    assert {rejection.kind for rejection in rejections} == {"excluded"}
    assert len(rejections) == 3
    assert description.official == {"train": 31201 + 1232}


def test_a_blacklist_excludes_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "black.json").write_text(json.dumps({"AudioSet": ["YYQSuFyFm3Lc.wav"], "FreeSound": ["7", "9"]}))
    (tmp_path / "dcase.csv").write_text("sound_id\n2219\n", encoding="utf-8")
    options = {"exclude": f"{tmp_path}/black.json,{tmp_path}/dcase.csv"}
    clips, rejections, description = read(corpus(tmp_path / "corpus"), options)
    assert [clip.id for clip in clips] == ["wavcaps/bbc/NHU05003137", "wavcaps/soundbible/2219"]
    assert Counter(rejection.kind for rejection in rejections) == {"excluded": 3}
    assert description.facts["blacklisted"] == {"black.json": {"audioset": 1, "freesound": 1}, "dcase.csv": {"freesound": 1}}
    assert description.warnings == []


def test_a_blacklist_that_takes_nothing_away_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "black.json").write_text(json.dumps({"FreeSound": ["1"]}))
    _, _, description = read(corpus(tmp_path / "corpus"), {"exclude": str(tmp_path / "black.json")})
    assert description.warnings[0].startswith("blacklist black.json: takes away no item of")


@pytest.mark.parametrize("content", ['["1"]', '{"FreeSound": "1"}', '{"Other": ["1"]}', '{"FreeSound": [["1"]]}', "{}"])
def test_a_blacklist_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "black.json").write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError, match="is no blacklist of WavCaps, expected"):
        read(corpus(tmp_path / "corpus"), {"exclude": str(tmp_path / "black.json")})


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("b.csv", "id\n1\n", "columns id found, expected sound_id"),
        ("b.csv", "sound_id,x\n1\n", "line 2: 1 cells found"),
        ("b.json", "{", "not JSON"),
    ],
)
def test_a_blacklist_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError, match=match):
        read(corpus(tmp_path / "corpus"), {"exclude": str(tmp_path / name)})


def test_a_blacklist_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        read(corpus(tmp_path / "corpus"), {"exclude": str(tmp_path / "none.json")})


def test_other_json_files_are_passed_over_aloud(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "black.json").write_text(json.dumps({"FreeSound": ["1"]}))
    (tmp_path / "other.json").write_text("[1]")
    reporter = Listening()
    clips, _, _ = read(tmp_path, reporter=reporter)
    assert len(clips) == 5
    assert len(reporter.said) == 2
    assert "-O exclude=PATH" in reporter.said[0]


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fsd' is no source of WavCaps, expected freesound, bbc, soundbible, audioset"):
        registry.build("recipe", "wavcaps", {"sources": "bbc,fsd"})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="split"):
        registry.build("recipe", "wavcaps", {"split": "test"})


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no list of WavCaps found, expected JSON"):
        read(tmp_path)


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ManifestError, match="no list of WavCaps found"):
        read(tmp_path / "x.json")


@pytest.mark.skipif("CLAPKIT_CAPTIONS" not in os.environ, reason="CLAPKIT_CAPTIONS does not name the folder with caption files")
def test_the_published_soundbible_list_parses_completely(tmp_path: Path) -> None:
    source = Path(os.environ["CLAPKIT_CAPTIONS"]) / "wavcaps_soundbible.json"
    _, rejections, description = read(source, audio_dir=tmp_path)
    assert Counter(rejection.kind for rejection in rejections) == {"missing": 1232}
    assert description.official == {"train": 1232}
    for rejection in rejections:
        touch(tmp_path / f"{rejection.item.rpartition('/')[2]}.flac")
    clips, rejections, _ = read(source, audio_dir=tmp_path)
    assert (len(clips), rejections) == (1232, [])
    assert {len(clip.captions) for clip in clips} == {1}
