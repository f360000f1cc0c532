import json
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, RecipeRequest, Rejection, SilentReporter


def table(folder: Path, content: str, *, name: str = "t.csv", audio: tuple[str, ...] = ("a.wav", "b.wav")) -> Path:
    for file in audio:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def read(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip | Rejection]:
    request = {"audio_dir": None, "output_dir": source.parent, "seed": 0, "workers": 1, "reporter": SilentReporter()}
    request |= changes
    return list(registry.build("recipe", "table", options).clips(RecipeRequest(source=source, **request)))


def texts(item: Clip | Rejection) -> list[str]:
    assert isinstance(item, Clip), item
    return [caption.text for caption in item.captions]


def rejection(item: Clip | Rejection) -> Rejection:
    assert isinstance(item, Rejection), item
    return item


def test_every_known_column_is_read(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "id,audio,caption,labels,split,fold,lang,start_s,end_s\nx1,a.wav,Ein Hund.,dog; big dog,dev,3,de,0.5,2\n",
    )
    (clip,) = read(path)
    assert clip == Clip(
        id="x1",
        audio="a.wav",
        captions=(Caption("Ein Hund.", "de"),),
        labels=("dog", "big dog"),
        split="dev",
        fold=3,
        source="a.wav",
        start_s=0.5,
        end_s=2.0,
    )


@pytest.mark.parametrize("column", ["audio", "path", "filepath", "file_name", "filename", "wav", "Audio", "FilePath"])
def test_audio_columns_are_recognised_in_any_case(tmp_path: Path, column: str) -> None:
    (clip,) = read(table(tmp_path, f"{column},caption\na.wav,A dog.\n"))
    assert isinstance(clip, Clip)
    assert (clip.audio, clip.id) == ("a.wav", "a")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("caption_1,caption_2,title", ["x", "y"]),
        ("caption,text,title", ["x"]),
        ("text,title,mood", ["x"]),
        ("mood,title,other", ["y"]),
        ("mood,other,more", []),
    ],
)
def test_caption_columns_are_recognised_best_first(tmp_path: Path, header: str, expected: list[str]) -> None:
    (clip,) = read(table(tmp_path, f"audio,{header}\na.wav,x,y,z\n"))
    assert texts(clip) == expected


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = table(tmp_path, "which,said,also,audio\na.wav,One.,Two.,nonsense\n")
    (clip,) = read(path, {"audio": "which", "caption": "said,also", "language": "fr"})
    assert isinstance(clip, Clip)
    assert clip.captions == (Caption("One.", "fr"), Caption("Two.", "fr"))


def test_rows_of_one_file_are_one_clip_with_all_captions_once(tmp_path: Path) -> None:
    path = table(tmp_path, "audio,caption,label\na.wav,One.,x\nb.wav,Other.,\na.wav,Two.,y\na.wav,One.,x\n")
    first, second = read(path)
    assert texts(first) == ["One.", "Two."]
    assert isinstance(first, Clip)
    assert first.labels == ("x", "y")
    assert texts(second) == ["Other."]


def test_spans_of_one_file_are_clips_of_one_source(tmp_path: Path) -> None:
    path = table(tmp_path, "audio,start_s,end_s,caption\na.wav,0,1,One.\na.wav,1,2.5,Two.\n")
    found = [item for item in read(path) if isinstance(item, Clip)]
    assert [clip.id for clip in found] == ["a@0-1", "a@1-2.5"]
    assert {clip.source for clip in found} == {"a.wav"}


def test_ids_that_look_like_numbers_or_options_stay_text(tmp_path: Path) -> None:
    path = table(tmp_path, "id,audio\n1234567e890,a.wav\n-x_y,b.wav\n")
    assert [clip.id for clip in read(path) if isinstance(clip, Clip)] == ["1234567e890", "-x_y"]


def test_one_name_in_two_formats_keeps_ids_apart(tmp_path: Path) -> None:
    path = table(tmp_path, "audio\na.wav\na.flac\n", audio=("a.wav", "a.flac"))
    assert [clip.id for clip in read(path) if isinstance(clip, Clip)] == ["a.wav", "a.flac"]


def test_the_exact_name_wins_over_its_readable_form(tmp_path: Path) -> None:
    both = table(tmp_path, "audio\na&amp;b.wav\n", audio=("a&amp;b.wav", "a&b.wav"))
    assert [clip.audio for clip in read(both) if isinstance(clip, Clip)] == ["a&amp;b.wav"]
    (tmp_path / "a&amp;b.wav").unlink()
    assert [clip.audio for clip in read(both) if isinstance(clip, Clip)] == ["a&b.wav"]


def test_a_leading_blank_of_a_file_name_is_kept_where_the_file_has_it(tmp_path: Path) -> None:
    path = table(tmp_path, 'audio\n" lead.wav"\n" a.wav"\n', audio=(" lead.wav", "a.wav"))
    assert [clip.audio for clip in read(path) if isinstance(clip, Clip)] == [" lead.wav", "a.wav"]


def test_a_name_without_format_finds_its_file(tmp_path: Path) -> None:
    path = table(tmp_path, "path\nclip.01\n", audio=("clip.01.flac",))
    assert [clip.audio for clip in read(path) if isinstance(clip, Clip)] == ["clip.01.flac"]


def test_audio_lies_in_the_audio_dir_or_at_an_absolute_path(tmp_path: Path) -> None:
    path = table(tmp_path, f"audio\na.wav\n{tmp_path}/far/b.wav\n", audio=("sounds/a.wav", "far/b.wav"))
    found = read(path, audio_dir=tmp_path / "sounds")
    assert [clip.audio for clip in found if isinstance(clip, Clip)] == ["a.wav", f"{tmp_path}/far/b.wav"]


def test_json_lines_hold_lists_of_captions_with_languages(tmp_path: Path) -> None:
    rows = [{"audio": "a.wav", "captions": ["One.", {"text": "Zwei.", "lang": "de"}], "labels": ["Speech, male"]}]
    path = table(tmp_path, "\n".join(map(json.dumps, rows)), name="t.jsonl")
    (clip,) = read(path)
    assert isinstance(clip, Clip)
    assert clip.captions == (Caption("One."), Caption("Zwei.", "de"))
    assert clip.labels == ("Speech, male",)


def test_wavcaps_items_are_found_by_id_and_the_path_of_the_authors_is_ignored(tmp_path: Path) -> None:
    items = [
        {"id": "Yabc.wav", "caption": "One.", "audio": "/mnt/fast/wavs/Yabc.wav", "duration": 1.0},
        {"id": "2219", "caption": "Two.", "audio": "wav_path", "title": "Landing"},
        {"id": "zzz", "caption": "Three.", "audio": "wav_path"},
    ]
    path = table(tmp_path, json.dumps({"data": items}), name="w.json", audio=("Yabc.flac", "2219.flac"))
    first, second, third = read(path)
    assert isinstance(first, Clip)
    assert isinstance(second, Clip)
    assert [first.audio, second.audio] == ["Yabc.flac", "2219.flac"]
    assert [first.id, second.id] == ["Yabc.wav", "2219"]
    assert texts(second) == ["Two."]
    assert "audio 'zzz': no such file" in rejection(third).reason


def test_ml_clap_items_are_found_by_the_name_of_their_wav(tmp_path: Path) -> None:
    items = [{"caption_1": "One.", "caption_2": "Two.", "wav": "Set/test/x y.wav", "audio": "/mnt/x y.wav", "id": "k8"}]
    path = table(tmp_path, json.dumps({"data": items}), name="m.json", audio=("x y.wav",))
    (clip,) = read(path)
    assert isinstance(clip, Clip)
    assert clip.audio == "x y.wav"
    assert texts(clip) == ["One.", "Two."]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("audio,caption\nnope.wav,A dog.\n", "audio 'nope.wav': no such file in "),
        ("audio,caption\n,A dog.\n", "empty audio path"),
        ("audio,caption\n../b.wav,A dog.\n", "audio '../b.wav' leaves the audio folder"),
        ("audio,caption\nx/../../b.wav,A dog.\n", "leaves the audio folder"),
        ("audio,caption\na.wav,  \n", "empty caption in caption, expected a sentence"),
        ("audio,caption_1,caption_2\na.wav,,\n", "empty caption in caption_1, caption_2"),
        ("audio,caption\na.wav,A dog, barking\n", "3 cells found, 2 expected"),
        ("audio,start_s\na.wav,soon\n", "start_s 'soon', expected seconds"),
        ("audio,end_s\na.wav,inf\n", "end_s 'inf', expected seconds"),
        ("audio,start_s,end_s\na.wav,2,1\n", r"span from 2.0 s to 1.0 s, expected 0 <= start_s < end_s"),
        ("audio,fold\na.wav,one\n", "fold 'one', expected a whole number"),
    ],
)
def test_a_bad_row_is_rejected_with_its_line_and_the_others_stay(tmp_path: Path, content: str, reason: str) -> None:
    good = content.split("\n")[0].replace("audio", "b.wav").replace("caption", "A cat.").replace("start_s", "0")
    good = good.replace("end_s", "1").replace("fold", "1")
    found, clip = read(table(tmp_path, content + good + "\n"))
    assert rejection(found).item == "t.csv line 2"
    assert reason in rejection(found).reason
    assert isinstance(clip, Clip)


def test_half_a_surrogate_pair_is_rejected_because_no_manifest_can_hold_it(tmp_path: Path) -> None:
    path = table(tmp_path, '{"audio": "a.wav", "caption": "A \\ud83d dog."}', name="t.jsonl")
    assert rejection(read(path)[0]).reason == r"text 'A \ud83d dog.' is not valid Unicode; correct it"


def test_one_empty_caption_among_several_is_no_loss(tmp_path: Path) -> None:
    (clip,) = read(table(tmp_path, "audio,caption_1,caption_2,caption_3\na.wav,One.,,Three.\n"))
    assert texts(clip) == ["One.", "Three."]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("youtube_id,caption\nx,A dog.\n", {}, "no audio column, columns found: youtube_id, caption; expected one of audio"),
        ("audio,caption\na.wav,x\n", {"caption": "capton"}, "no column 'capton', columns found: audio, caption"),
        ("audio,caption\na.wav,x\n", {"audio": "Audio"}, "no column 'Audio', columns found: audio, caption"),
        ("audio,id\na.wav,x\nb.wav,x\n", {}, "line 3: id 'x' is used for b.wav, but on line 2 for a.wav"),
        ("audio,split\na.wav,train\na.wav,test\n", {}, "line 3: a.wav has split test, but train on line 2"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    tmp_path: Path, content: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        read(table(tmp_path, content), options)


def test_bytes_in_another_encoding_are_refused_and_read_when_it_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, "")
    path.write_bytes(b"audio,caption\na.wav,Caf\xe9.\n")
    with pytest.raises(ManifestError, match=r"line 2: byte 23 \(0xe9\) is not utf-8"):
        read(path)
    assert texts(read(path, {"encoding": "latin-1"})[0]) == ["Café."]
