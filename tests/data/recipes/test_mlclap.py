import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes.mlclap import normalized
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.types import Caption, Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter


def item(wav: str, *captions: str | None, **cells: Any) -> dict[str, Any]:
    numbered = {f"caption_{k}": text for k, text in enumerate(captions, start=1)}
    return numbered | {"wav": wav, "audio": "/elsewhere/wrong.wav", "duration": 10.0} | cells


def write(path: Path, *items: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"num_captions_per_audio": 5, "data": items}), encoding="utf-8")
    return path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def read(
    source: Path, options: dict[str, Any] | None = None, *, audio_dir: Path | None = None
) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "mlclap", options)
    request = RecipeRequest(
        source=source, audio_dir=audio_dir, output_dir=source.parent, seed=0, workers=1, reporter=SilentReporter()
    )
    items = list(recipe.clips(request))
    clips = [item for item in items if isinstance(item, Clip)]
    return clips, [item for item in items if isinstance(item, Rejection)], recipe.describe(clips)


def test_captions_keep_their_order_and_languages(tmp_path: Path) -> None:
    languages = ["eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn", "nld_Latn", "cat_Latn", "jpn_Jpan", "zho_Hans"]
    codes = {f"source_lang_{k}": code for k, code in enumerate(languages, start=1)}
    touch(tmp_path / "Ya.wav")
    (clip,), rejections, description = read(write(tmp_path / "x_test.json", item("Ya.wav", *"abcdefgh", **codes)))
    assert rejections == []
    expected = ["en", "fr", "de", "es", "nl", "ca", "ja", "zh"]
    assert clip.captions == tuple(Caption(text, lang) for text, lang in zip("abcdefgh", expected, strict=True))
    assert description.facts["languages"] == dict.fromkeys(sorted(expected), 1)


def test_ten_captions_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    (clip,), _, _ = read(write(tmp_path / "x_test.json", item("a.wav", *(f"Number {k}." for k in range(1, 12)))))
    assert [caption.text for caption in clip.captions] == [f"Number {k}." for k in range(1, 12)]


def test_items_may_have_different_numbers_of_captions(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    touch(tmp_path / "b.wav")
    source = write(tmp_path / "x_test.json", item("a.wav", "One.", None, "Three."), item("b.wav", "Only."))
    clips, rejections, _ = read(source)
    assert [[caption.text for caption in clip.captions] for clip in clips] == [["One.", "Three."], ["Only."]]
    assert rejections == []


def test_the_audio_goes_by_wav_and_not_by_id(tmp_path: Path) -> None:
    touch(tmp_path / "evaluation/Santa Motor.wav")
    touch(tmp_path / "0edb.wav")
    source = write(tmp_path / "clotho_test.json", item("Clotho/waveforms/test/Santa Motor.wav", "One.", id="0edb.wav"))
    (clip,), _, _ = read(source)
    assert (clip.id, clip.audio, clip.split) == ("mlclap/clotho_test/Santa Motor", "evaluation/Santa Motor.wav", "test")
    assert clip.source == "clotho/test/Santa Motor"


def test_a_name_in_two_folders_is_that_of_the_split(tmp_path: Path) -> None:
    touch(tmp_path / "evaluation/x.wav")
    touch(tmp_path / "validation/x.wav")
    clips, _, _ = read(write(tmp_path / "clotho_val.json", item("Clotho/waveforms/val/x.wav", "One.")))
    assert [clip.audio for clip in clips] == ["validation/x.wav"]


@pytest.mark.parametrize(
    ("wav", "id", "source"),
    [
        ("AudioCaps/waveforms/test/YYQSuFyFm3Lc.wav", "YYQSuFyFm3Lc.wav", "youtube/YQSuFyFm3Lc"),
        ("Clotho/waveforms/test/x.wav", "103989", "freesound/103989"),
        ("Other/x.wav", "103989", "mlclap/list_test/x"),
    ],
)
def test_the_recording_has_its_global_name(tmp_path: Path, wav: str, id: str, source: str) -> None:
    touch(tmp_path / wav)
    (clip,), _, _ = read(write(tmp_path / "list_test.json", item(wav, "One.", id=id)))
    assert clip.source == source


@pytest.mark.parametrize(
    ("name", "split"),
    [("audiocaps_train.json", "train"), ("clotho_val.json", "val"), ("test.json", "test"), ("everything.json", None)],
)
def test_the_name_of_the_list_says_the_split(tmp_path: Path, name: str, split: str | None) -> None:
    touch(tmp_path / "a.wav")
    (clip,), _, description = read(write(tmp_path / name, item("a.wav", "One.")))
    assert clip.split == split
    assert description.official == ({} if split is None else {split: 1})


def test_a_language_that_is_not_known_is_refused_and_the_clip_stays(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    cells = {"source_lang_1": "eng_Latn", "source_lang_2": "swe_Latn"}
    (clip,), (rejection,), _ = read(write(tmp_path / "x_test.json", item("a.wav", "One.", "Två.", **cells)))
    assert clip.captions == (Caption("One."),)
    assert (rejection.item, rejection.check) == ("mlclap/x_test/a caption 2", "language")
    assert "language 'swe_Latn', expected one of eng_Latn" in rejection.reason


def test_a_clip_without_any_known_language_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    clips, rejections, _ = read(write(tmp_path / "x_test.json", item("a.wav", "Två.", source_lang_1="swe_Latn")))
    assert clips == []
    assert [rejection.item for rejection in rejections] == ["mlclap/x_test/a caption 1", "mlclap/x_test/a"]


def test_empty_captions_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    (clip,), (rejection,), _ = read(write(tmp_path / "x_test.json", item("a.wav", "", "Two.")))
    assert clip.captions == (Caption("Two."),)
    assert (rejection.item, rejection.check) == ("mlclap/x_test/a caption 1", "empty_caption")


def test_missing_audio_is_counted_with_its_split(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    clips, (rejection,), description = read(write(tmp_path / "x_val.json", item("a.wav", "One."), item("b.wav", "Two.")))
    assert len(clips) == 1
    assert (rejection.item, rejection.kind, rejection.split) == ("mlclap/x_val/b", "missing", "val")
    assert description.official == {"val": 2}


@pytest.mark.parametrize("is_lines", [True, False])
def test_multilingual_training_lists_are_read(tmp_path: Path, is_lines: bool) -> None:
    items = [{"captions": {"eng_Latn": ["One.", "Two."], "fra_Latn": ["Un."]}, "wav": "a.flac"}]
    path = tmp_path / ("x_train.jsonl" if is_lines else "x_train.json")
    path.write_text("\n".join(map(json.dumps, items)) if is_lines else json.dumps(items), encoding="utf-8")
    touch(tmp_path / "a.flac")
    (clip,), _, _ = read(path)
    assert clip.captions == (Caption("One."), Caption("Two."), Caption("Un.", "fr"))
    assert clip.split == "train"


def test_json_files_beside_their_audio_are_read(tmp_path: Path) -> None:
    for shard, text in (("0", "Un."), ("1", "Deux.")):
        touch(tmp_path / shard / "7.flac")
        (tmp_path / shard / "7.json").write_text(json.dumps({"captions": {"fr": text}}), encoding="utf-8")
    clips, _, _ = read(tmp_path)
    assert [(clip.id, clip.audio, clip.captions) for clip in clips] == [
        ("mlclap/0/7", "0/7.flac", (Caption("Un.", "fr"),)),
        ("mlclap/1/7", "1/7.flac", (Caption("Deux.", "fr"),)),
    ]


def test_a_folder_of_lists_is_read_with_ids_that_differ(tmp_path: Path) -> None:
    touch(tmp_path / "audio/a.wav")
    write(tmp_path / "lists/x_test.json", item("a.wav", "One."))
    write(tmp_path / "lists/x_val.json", item("a.wav", "One."))
    clips, _, _ = read(tmp_path / "lists", audio_dir=tmp_path / "audio")
    assert [clip.id for clip in clips] == ["mlclap/x_test/a", "mlclap/x_val/a"]


def test_an_item_that_comes_twice_or_has_no_name_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    source = write(tmp_path / "x_test.json", item("a.wav", "One."), item("a.wav", "Two."), {"caption_1": "Three."})
    clips, rejections, _ = read(source)
    assert len(clips) == 1
    assert [rejection.item for rejection in rejections] == ["x_test.json item 2", "x_test.json item 3"]


def test_captions_that_are_no_object_are_refused(tmp_path: Path) -> None:
    clips, (rejection,), _ = read(write(tmp_path / "x_test.json", {"wav": "a.wav", "captions": ["One."]}))
    assert clips == []
    assert "captions are a list, expected {language: [texts]}" in rejection.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog barks, then  stops!", "a dog barks then stops"),
        ("It's 5$ (walkie-talkie).", "it s 5 walkie talkie"),
        ("L’eau «coule»…", "l eau coule"),
        ("犬が吠える。", "犬が吠える"),
    ],
)
def test_normalisation_is_lower_case_without_punctuation(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(("option", "expected"), [("true", "a dog barks"), ("false", "A dog, barks.")])
def test_captions_are_only_normalised_on_request(tmp_path: Path, option: str, expected: str) -> None:
    touch(tmp_path / "a.wav")
    source = write(tmp_path / "x_test.json", item("a.wav", "A dog, barks."))
    (clip,), _, description = read(source, {"normalize": option})
    assert clip.captions[0].text == expected
    assert description.facts["normalized"] is (option == "true")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.json", "{", "not JSON"),
        ("x.json", '{"a": 1}', "no items found, expected"),
        ("x.json", "[]", "holds no item"),
        ("x.json", "[1]", "item 1: holds a int, expected an object"),
        ("x.jsonl", '{"wav": 1}\n{', "line 2: not JSON"),
        ("x.txt", "", "no list found, expected JSON"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError, match=match):
        read(tmp_path / name)


def test_a_list_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'["\xe9"]')
    with pytest.raises(ManifestError, match="byte 2 is not UTF-8"):
        read(tmp_path / "x.json")


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no list found, expected JSON"):
        read(tmp_path)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="normalize=maybe"):
        registry.build("recipe", "mlclap", {"normalize": "maybe"})
    with pytest.raises(UnknownNameError, match="languages"):
        registry.build("recipe", "mlclap", {"languages": "en"})


def captions_of_table(path: Path, *, is_wide: bool) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if is_wide:
                found[row["file_name"].removesuffix(".wav").strip()] = [row[f"caption_{k}"].strip() for k in range(1, 6)]
            else:
                found.setdefault(f"Y{row['youtube_id']}", []).append(row["caption"].strip())
    return found


@pytest.mark.skipif("CLAPKIT_CAPTIONS" not in os.environ, reason="CLAPKIT_CAPTIONS does not name the folder with caption files")
@pytest.mark.parametrize(("name", "count"), [("audiocaps", 957), ("clotho", 1045)])
def test_the_published_test_lists_hold_the_captions_of_their_corpora(tmp_path: Path, name: str, count: int) -> None:
    real = Path(os.environ["CLAPKIT_CAPTIONS"])
    expected = captions_of_table(real / name / "test.csv", is_wide=name == "clotho")
    for stem in expected:
        touch(tmp_path / f"{stem}.wav")
    clips, rejections, description = read(real / "ml-clap" / f"{name}_test.json", audio_dir=tmp_path)
    assert (len(clips), rejections) == (count, [])
    assert description.facts["languages"] == {"en": 5 * count}
    for clip in clips:
        stem = clip.id.split("/", 2)[2]
        assert [caption.text for caption in clip.captions] == expected[stem]


def test_two_lists_of_one_split_are_warned_of_because_they_share_a_gallery(tmp_path: Path) -> None:
    for name in ("a", "b"):
        touch(tmp_path / f"{name}.wav")
        write(tmp_path / f"{name}_test.json", item(f"{name}.wav", "A dog"))
    assert read(tmp_path)[2].warnings == [
        "test holds the clips of 2 lists (a_test, b_test), which makes one gallery of them; "
        "name one list to compare with others"
    ]
    assert read(tmp_path / "a_test.json")[2].warnings == []
