from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, Relevance, SilentReporter


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def folder(path: Path, audio: tuple[str, ...], **tables: str) -> Path:
    for name in audio:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    for name, content in tables.items():
        (path / f"{name}.csv").write_text(content, encoding="utf-8")
    return path


def read(
    source: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "dcase", options)
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    clips = [item for item in items if isinstance(item, Clip)]
    return clips, [item for item in items if isinstance(item, Rejection)], recipe.describe(clips)


def texts(clip: Clip) -> list[str]:
    return [caption.text for caption in clip.captions]


BASELINE = 'fname,raw_text,text\na.wav,"Rain, then wind.",rain then wind\nb.wav,A dog.,a dog\na.wav,Wind!,wind\n'


@pytest.mark.parametrize(
    ("column", "expected"), [("raw_text", ["Rain, then wind.", "Wind!"]), ("text", ["rain then wind", "wind"])]
)
def test_rows_of_the_baseline_table_are_gathered_by_clip(tmp_path: Path, column: str, expected: list[str]) -> None:
    source = folder(tmp_path, ("a.wav", "b.wav", "unlisted.wav"), captions=BASELINE)
    clips, rejections, description = read(source, {"text": column})
    assert rejections == []
    assert [(clip.id, clip.split) for clip in clips] == [("dcase/test/a", "test"), ("dcase/test/b", "test")]
    assert texts(clips[0]) == expected
    assert description.official == {"test": 2}


def test_a_table_named_after_a_split_is_that_split(tmp_path: Path) -> None:
    source = folder(
        tmp_path, ("development/a.wav", "evaluation/a.wav"), development_captions="fname,raw_text,text\na.wav,A.,a\n"
    )
    clips, _, _ = read(source)
    assert [(clip.id, clip.audio, clip.split) for clip in clips] == [("dcase/train/a", "development/a.wav", "train")]


def test_queries_without_truth_make_every_file_a_clip(tmp_path: Path) -> None:
    source = folder(tmp_path, ("test/b.wav", "test/a.wav"), retrieval_captions="caption\nRain.\nRain.\n A dog. \n")
    clips, rejections, description = read(source)
    assert rejections == []
    assert [(clip.id, clip.captions) for clip in clips] == [("dcase/test/a", ()), ("dcase/test/b", ())]
    assert description.facts["queries_without_clip"] == 3
    assert description.warnings[0].startswith("queries with the text of another: 1, first: 'Rain.'")
    assert description.warnings[1].startswith("queries without truth: 3")


@pytest.mark.parametrize(("gallery", "count"), [("auto", 1), ("listed", 1), ("all", 3)])
def test_the_gallery_can_be_chosen(tmp_path: Path, gallery: str, count: int) -> None:
    source = folder(tmp_path, ("a.wav", "x.wav", "y.wav", ".hidden.wav"), queries="caption,file_name\nRain.,a.wav\n")
    clips, _, _ = read(source, {"gallery": gallery})
    assert len(clips) == count
    assert texts(clips[0]) == ["Rain."]


def test_gallery_files_of_one_name_have_ids_that_differ(tmp_path: Path) -> None:
    source = folder(tmp_path, ("a.wav", "a.flac", "x/b.wav", "y/b.wav"), queries="caption,file_name\nRain.,a.wav\n")
    clips, _, _ = read(source, {"gallery": "all"})
    assert [clip.id for clip in clips] == [
        "dcase/test/a",
        "dcase/test/a.flac",
        "dcase/test/x/b.wav",
        "dcase/test/y/b.wav",
    ]


def test_colons_in_names_are_underscores_on_disk(tmp_path: Path) -> None:
    clips, _, _ = read(folder(tmp_path, ("rain 10_30.wav",), queries="caption,file_name\nRain.,rain 10:30.wav\n"))
    assert [clip.audio for clip in clips] == ["rain 10_30.wav"]


def test_metadata_name_the_recordings(tmp_path: Path) -> None:
    source = folder(tmp_path, ("a.wav", "b.wav", "c.wav"), retrieval_captions="caption\nRain.\n")
    metadata = "file_name;keywords;sound_link\na.wav;caf\xe9;https://x/people/y/sounds/123/\nb.wav;x;NA\n"
    (source / "retrieval_audio_metadata.csv").write_bytes(metadata.encode("latin-1"))
    clips, _, _ = read(source)
    assert [clip.source for clip in clips] == ["freesound/123", "dcase/test/b", "dcase/test/c"]


CLOTHO = "file_name,caption_1,caption_2\na.wav,Rain.,Water falls.\nb.wav,A dog.,Barking.\n"


def test_annotations_with_printed_lists_become_judgements(tmp_path: Path) -> None:
    source = folder(
        tmp_path,
        ("evaluation/a.wav", "evaluation/b.wav", "evaluation/c.wav"),
        clotho_captions_evaluation=CLOTHO,
        metadata_eval="query,audio_filenames\nRain.,\"['a.wav', 'c.wav']\"\nA dog.,\"['b.wav']\"\n",
    )
    clips, rejections, description = read(source)
    assert rejections == []
    assert [(clip.id, len(clip.captions)) for clip in clips] == [
        ("dcase/test/a", 2),
        ("dcase/test/b", 2),
        ("dcase/test/c", 0),  # a distractor that only the annotations name
    ]
    assert description.relevance == [
        Relevance("Rain.", "dcase/test/a", 1.0),
        Relevance("Rain.", "dcase/test/c", 1.0),
        Relevance("A dog.", "dcase/test/b", 1.0),
    ]
    assert description.facts["judged_queries"] == 2


def test_one_pair_a_row_with_grades_becomes_judgements(tmp_path: Path) -> None:
    table = "caption,file_name,relevance\nRain.,a.wav,2\nRain.,b.wav,0\nA dog.,b.wav,0.5\n"
    _, rejections, description = read(folder(tmp_path, ("a.wav", "b.wav"), judged=table))
    assert rejections == []
    assert [(r.query, r.clip_id, r.grade) for r in description.relevance] == [
        ("Rain.", "dcase/test/a", 2.0),
        ("Rain.", "dcase/test/b", 0.0),
        ("A dog.", "dcase/test/b", 0.5),
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_of_the_annotations_can_be_named(tmp_path: Path, suffix: str) -> None:
    folder(tmp_path, ("a.wav",))
    delimiter = "\t" if suffix == "tsv" else ","
    (tmp_path / f"x.{suffix}").write_text("what,which,how\nRain.,a.wav,true\n".replace(",", delimiter), encoding="utf-8")
    options = {"query_column": "what", "clip_column": "which", "grade_column": "how"}
    _, _, description = read(tmp_path / f"x.{suffix}", options)
    assert description.relevance == [Relevance("Rain.", "dcase/test/a", 1.0)]


def test_a_query_may_stand_for_no_clip_of_its_own(tmp_path: Path) -> None:
    source = folder(
        tmp_path,
        ("a.wav", "b.wav"),
        retrieval_captions="caption\nRain.\nThunder.\n",
        judged="query,clip\nRain.,a\n",
    )
    clips, _, description = read(source)
    assert [clip.captions for clip in clips] == [(), ()]
    assert description.relevance == [Relevance("Rain.", "dcase/test/a", 1.0)]
    assert description.warnings == []


@pytest.mark.parametrize("name", ["rain &amp; wind 1:2.wav", " rain & wind 1_2.wav", "rain & wind 1_2"])
def test_judged_clips_are_found_by_tidied_names(tmp_path: Path, name: str) -> None:
    source = folder(
        tmp_path, ("rain & wind 1_2.wav",), retrieval_captions="caption\nRain.\n", judged=f"query,clip\nRain.,{name}\n"
    )
    _, rejections, description = read(source)
    assert rejections == []
    assert len(description.relevance) == 1


def test_judgements_about_missing_clips_are_warned_about(tmp_path: Path) -> None:
    clips, (rejection,), description = read(folder(tmp_path, ("a.wav",), judged="query,clip\nRain.,a.wav\nRain.,b.wav\n"))
    assert len(clips) == 1
    assert (rejection.item, rejection.kind, rejection.split) == ("dcase/test/b", "missing", "test")
    assert len(description.relevance) == 1
    assert description.warnings[0].startswith("judgements of relevance about clips that are not there: 1, first: b.wav")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (" ,a.wav,1", "empty query"),
        ("Rain., ,1", "no clip, expected a file name"),
        ("Rain.,[],1", "no clip, expected a file name"),
        ("Rain.,b.wav,high", "the grade is no number"),
        ("Rain.,b.wav,-1", "the grade is no number"),
        ("Rain.,a.wav,0", "a clip is judged twice for the query"),
        ("Rain.", "1 cells found"),
    ],
)
def test_judgements_that_cannot_be_used_are_refused(tmp_path: Path, row: str, match: str) -> None:
    source = folder(tmp_path, ("a.wav", "b.wav"), judged=f"query,clip,grade\nRain.,a.wav,1\n{row}\n")
    _, (rejection,), description = read(source)
    assert rejection.item == "judged.csv line 3"
    assert match in rejection.reason
    assert len(description.relevance) == 1


def test_empty_captions_and_names_are_refused(tmp_path: Path) -> None:
    table = "fname,raw_text,text\na.wav,,x\na.wav,A.,x\n ,B.,x\n"
    (clip,), rejections, _ = read(
        folder(tmp_path, ("a.wav",), captions=table, queries="caption\n \nX.\n"), {"gallery": "listed"}
    )
    assert texts(clip) == ["A."]
    assert [(r.item, r.check) for r in rejections] == [
        ("captions.csv line 4", None),
        ("queries.csv line 2", "empty_caption"),
        ("dcase/test/a caption 1", "empty_caption"),
    ]


def test_missing_audio_is_counted(tmp_path: Path) -> None:
    clips, (rejection,), description = read(folder(tmp_path, ("a.wav",), captions=BASELINE))
    assert len(clips) == 1
    assert (rejection.item, rejection.kind, rejection.split) == ("dcase/test/b", "missing", "test")
    assert description.official == {"test": 2}


def test_tables_of_another_kind_are_passed_over_aloud(tmp_path: Path) -> None:
    submission = "caption," + ",".join(f"file_name_{k}" for k in range(1, 11)) + "\nRain." + ",a.wav" * 10 + "\n"
    reporter = Listening()
    _, _, description = read(folder(tmp_path, ("a.wav", "b.wav"), captions=BASELINE, submission=submission), reporter=reporter)
    assert description.facts["tables"] == {"captions.csv": "captions"}
    assert len(reporter.said) == 1
    assert "submission.csv: passed over" in reporter.said[0]


def test_a_folder_without_known_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no table of DCASE found, expected fname,raw_text,text or"):
        read(folder(tmp_path, ("a.wav",), other="x,y\n1,2\n"))


def test_a_column_that_no_table_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no table has the column 'what'"):
        read(folder(tmp_path, ("a.wav",), captions=BASELINE), {"query_column": "what"})


def test_an_unknown_gallery_is_refused() -> None:
    with pytest.raises(ConfigError, match="gallery=some: expected one of auto, listed, all"):
        registry.build("recipe", "dcase", {"gallery": "some"})
