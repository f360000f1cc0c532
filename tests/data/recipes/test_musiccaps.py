from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ManifestError, UnknownNameError
from clapkit.types import Caption, Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

HEADER = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
TABLE = HEADER + (
    '-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","[\'low quality\', ""it\'s sad"", \'a, b\']","A song, sung.",4,False,True\n'
    "1234567e890,0,10,/m/04rlf,\"['techno']\",A beat.,6,True,False\n"
    "_zz9-YY0aaB,100,110,/m/04rlf,[],Strings.,6,True,True\n"
)
COMPLETE = ("[-0Gj8-vB1q4]-[30-40].wav", "1234567e890.mp3", "sub/_zz9-YY0aaB_100.flac")


def corpus(folder: Path, audio: Sequence[str] = (), *, table: str = TABLE) -> Path:
    (folder / "musiccaps-public.csv").write_text(table, encoding="utf-8")
    for name in audio:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def run(source: Path, options: dict[str, Any] | None = None) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "musiccaps", options)
    request = RecipeRequest(source=source, audio_dir=None, output_dir=source, seed=0, workers=1, reporter=SilentReporter())
    items = list(recipe.clips(request))
    found = [item for item in items if isinstance(item, Clip)]
    return found, [item for item in items if isinstance(item, Rejection)], recipe.describe(found)


def test_a_row_is_a_clip_with_one_caption_and_its_aspects(tmp_path: Path) -> None:
    clips, rejections, description = run(corpus(tmp_path, COMPLETE))
    assert not rejections
    assert [clip.audio for clip in clips] == list(COMPLETE)
    assert clips[0] == Clip(
        id="musiccaps/-0Gj8-vB1q4_30",
        audio="[-0Gj8-vB1q4]-[30-40].wav",
        captions=(Caption("A song, sung."),),
        split="test",
        source="youtube/-0Gj8-vB1q4",
        extra={
            "video_start_s": 30.0,
            "video_end_s": 40.0,
            "aspects": ["low quality", "it's sad", "a, b"],
            "audioset_positive_labels": "/m/0140xf,/m/02cjck",
            "author_id": "4",
            "is_balanced_subset": "False",
            "is_audioset_eval": "True",
        },
    )
    assert clips[2].extra["aspects"] == []
    assert Counter(clip.split for clip in clips) == {"test": 2, "train": 1}
    assert description.official == {"train": 2663, "test": 2858}
    assert description.facts == {"captions": "MusicCaps", "splits": "is_audioset_eval"}
    assert run(tmp_path / "musiccaps-public.csv")[0] == clips


def test_missing_clips_are_counted_with_their_split(tmp_path: Path) -> None:
    clips, rejections, _ = run(corpus(tmp_path))
    assert not clips
    assert Counter((item.kind, item.split) for item in rejections) == {("missing", "test"): 2, ("missing", "train"): 1}
    assert "no audio [-0Gj8-vB1q4]-[30-40] or -0Gj8-vB1q4_30 or Y-0Gj8-vB1q4 below" in rejections[0].reason


@pytest.mark.parametrize("printed", ["['a'", "{'a': 1}", "[1]", "", "__import__('os')"])
def test_aspects_that_are_no_list_are_said_and_the_clip_stays(tmp_path: Path, printed: str) -> None:
    table = HEADER + f'aaaaaaaaaaa,0,10,,"{printed}",Hum.,1,True,True\n'
    (clip,), (rejection,), _ = run(corpus(tmp_path, ["aaaaaaaaaaa.wav"], table=table))
    assert "aspects" not in clip.extra
    assert (rejection.item, rejection.kind) == ("musiccaps/aaaaaaaaaaa_0 aspect_list", "bad")
    assert "expected a list of texts as Python prints it" in rejection.reason


@pytest.mark.parametrize(
    ("row", "item", "reason"),
    [
        ("short,0,10,,[],x,1,True,True", "musiccaps-public.csv line 2", "ytid 'short', expected 11 letters"),
        ("aaaaaaaaaaa,10,10,,[],x,1,True,True", "musiccaps-public.csv line 2", "span from 10.0 s to 10.0 s"),
        ("aaaaaaaaaaa,,10,,[],x,1,True,True", "musiccaps-public.csv line 2", "span from None s to 10.0 s"),
        ("aaaaaaaaaaa,a,10,,[],x,1,True,True", "musiccaps-public.csv line 2", "start_s 'a', expected seconds"),
        ("aaaaaaaaaaa,0,10,,[],x,1,True,maybe", "musiccaps-public.csv line 2", "is_audioset_eval 'maybe', expected True"),
        ("aaaaaaaaaaa,0,10,,[],x,1,True", "musiccaps-public.csv line 2", "8 cells found, 9 expected"),
        ("bbbbbbbbbbb,0,10,,[],x,1,True,True", "musiccaps-public.csv line 3", "listed on line 2 already"),
        ("aaaaaaaaaaa,0,10,,[], ,1,True,True", "musiccaps/aaaaaaaaaaa_0", "empty caption, expected a sentence"),
    ],
)
def test_rows_that_cannot_be_used_are_rejected(tmp_path: Path, row: str, item: str, reason: str) -> None:
    table = f"{HEADER}{row}\nbbbbbbbbbbb,0,10,,[],y,1,True,True\n"
    clips, (rejection,), _ = run(corpus(tmp_path, ["aaaaaaaaaaa.wav", "bbbbbbbbbbb.wav"], table=table))
    assert [clip.id for clip in clips] == ["musiccaps/bbbbbbbbbbb_0"]
    assert (rejection.item, rejection.kind) == (item, "bad")
    assert reason in rejection.reason


def test_translated_tables_name_their_language(tmp_path: Path) -> None:
    assert run(corpus(tmp_path, COMPLETE), {"language": "de"})[0][1].captions == (Caption("A beat.", "de"),)


def test_what_is_no_musiccaps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no table of MusicCaps found, expected musiccaps-public.csv or musiccaps.csv"):
        run(tmp_path)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ManifestError, match="is no CSV file, expected musiccaps-public.csv"):
        run(tmp_path / "x.json")
    with pytest.raises(ManifestError, match="no column 'aspect_list', columns found: ytid, start_s, end_s, caption"):
        run(corpus(tmp_path, table="ytid,start_s,end_s,caption\na,0,1,x\n"))
    with pytest.raises(UnknownNameError, match="option of recipe 'musiccaps'"):
        registry.build("recipe", "musiccaps", {"subset": "all"})
