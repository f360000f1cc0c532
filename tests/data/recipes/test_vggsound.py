from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from clapkit import registry
from clapkit.errors import ManifestError, UnknownNameError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

ALL = (
    '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"donkey, ass braying",train\n'
    "B5KE79I2f-A,188,wind noise,test\nB5KE79I2f-A,220,wind noise,train\n1234567e890,0,police car (siren),train\n"
)
TEST = '-Tok_g_jgE0_000268.mp4,rope skipping\n0_8-g2rof7E_000049.mp4,"heart sounds, heartbeat"\n'
COMPLETE = (
    "test/---g-f_I2yQ_000001.wav",
    "train/--0PQM4-hqg.flac",
    "test/B5KE79I2f-A_188.wav",
    "train/YB5KE79I2f-A_220000.wav",
    "train/1234567e890_000000.mp3",
)


def corpus(folder: Path, audio: Sequence[str] = (), **lists: str) -> Path:
    for name, content in (lists or {"vggsound": ALL}).items():
        (folder / f"{name}.csv").write_text(content, encoding="utf-8")
    for name in audio:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def run(source: Path, audio_dir: Path | None = None) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "vggsound")
    request = RecipeRequest(source=source, audio_dir=audio_dir, output_dir=source, seed=0, workers=1, reporter=SilentReporter())
    items = list(recipe.clips(request))
    found = [item for item in items if isinstance(item, Clip)]
    return found, [item for item in items if isinstance(item, Rejection)], recipe.describe(found)


def test_the_list_of_all_clips_has_no_header_and_quotes_labels_with_commas(tmp_path: Path) -> None:
    clips, rejections, description = run(corpus(tmp_path, COMPLETE))
    assert not rejections
    assert [clip.audio for clip in clips] == list(COMPLETE)
    assert [clip.labels for clip in clips[:2]] == [("people marching",), ("donkey, ass braying",)]
    assert clips[0] == Clip(
        id="vggsound/---g-f_I2yQ_1",
        audio="test/---g-f_I2yQ_000001.wav",
        labels=("people marching",),
        split="test",
        source="youtube/---g-f_I2yQ",
        extra={"video_start_s": 1.0},
    )
    assert Counter(clip.split for clip in clips) == {"train": 3, "test": 2}
    assert description.official == {"train": 183_730, "test": 15_446}
    assert description.facts == {"class_names": "1", "num_classes": 4}
    assert not description.warnings


def test_clips_of_one_video_share_a_source_and_no_file_without_start(tmp_path: Path) -> None:
    clips, rejections, _ = run(corpus(tmp_path, [*COMPLETE[:2], "test/B5KE79I2f-A.wav", *COMPLETE[3:]]))
    assert [item.item for item in rejections] == ["vggsound/B5KE79I2f-A_188"]
    assert {clip.source for clip in clips if "B5KE" in clip.id} == {"youtube/B5KE79I2f-A"}


def test_the_list_of_one_split_names_videos_and_audio_is_found_in_any_format(tmp_path: Path) -> None:
    clips, rejections, description = run(corpus(tmp_path, ["-Tok_g_jgE0_000268.wav", "0_8-g2rof7E_000049.flac"], test=TEST))
    assert not rejections
    assert [(clip.id, clip.labels[0], clip.split) for clip in clips] == [
        ("vggsound/-Tok_g_jgE0_268", "rope skipping", "test"),
        ("vggsound/0_8-g2rof7E_49", "heart sounds, heartbeat", "test"),
    ]
    assert description.official == {"test": 15_446}
    assert [clip.id for clip in run(tmp_path / "test.csv")[0]] == [clip.id for clip in clips]


def test_missing_clips_are_counted_with_their_split(tmp_path: Path) -> None:
    clips, rejections, _ = run(corpus(tmp_path, [COMPLETE[0]]))
    assert len(clips) == 1
    assert Counter((item.kind, item.split) for item in rejections) == {("missing", "train"): 3, ("missing", "test"): 1}
    assert rejections[0].reason.startswith("no audio --0PQM4-hqg_000030 or --0PQM4-hqg_30 or Y--0PQM4-hqg below ")


def test_a_header_that_a_copy_added_is_no_row(tmp_path: Path) -> None:
    clips, rejections, _ = run(corpus(tmp_path, COMPLETE, vggsound="youtube_id,start_seconds,label,split\n" + ALL))
    assert (len(clips), rejections) == (5, [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("short,1,x,test", "id 'short' from '1' s, expected 11 letters"),
        ("aaaaaaaaaaa,soon,x,test", "id 'aaaaaaaaaaa' from 'soon' s, expected 11 letters"),
        ("aaaaaaaaaaa,1,x,val", "split 'val', expected train or test"),
        ("aaaaaaaaaaa,1,,test", "empty label, expected one of the 309 classes"),
        ("aaaaaaaaaaa,1,a, b,test", "5 cells found, 4 expected"),
        ("---g-f_I2yQ,1,hail,train", "---g-f_I2yQ from 1 s is listed on vggsound.csv line 1 already"),
    ],
)
def test_rows_that_cannot_be_used_are_rejected_with_their_line(tmp_path: Path, row: str, reason: str) -> None:
    clips, (rejection,), _ = run(corpus(tmp_path, COMPLETE, vggsound=f"{ALL}{row}\n"))
    assert len(clips) == 5
    assert (rejection.item, rejection.kind) == ("vggsound.csv line 6", "bad")
    assert reason in rejection.reason


def test_a_name_without_start_in_the_list_of_a_split_is_rejected(tmp_path: Path) -> None:
    _, rejections, _ = run(corpus(tmp_path, test="aaaaaaaaaaa.mp4,hail\n" + TEST))
    assert rejections[0].item == "test.csv line 1"
    assert "file name 'aaaaaaaaaaa.mp4', expected id_start.mp4" in rejections[0].reason
    assert rejections[0].split == "test"


def test_more_labels_than_classes_are_warned_of(tmp_path: Path) -> None:
    rows = "".join(f"{i:011d},0,class {i},train\n" for i in range(310))
    _, _, description = run(corpus(tmp_path, [f"{i:011d}.wav" for i in range(310)], vggsound=rows))
    assert description.warnings == ["310 labels found, VGGSound has 309: look for misspelt ones"]


def test_what_is_no_vggsound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no list of VGGSound found, expected vggsound.csv, or train.csv and test.csv"):
        run(tmp_path)
    corpus(tmp_path, videos=TEST)
    with pytest.raises(ManifestError, match="no row has the four cells id,start,label,split, and the file name says neither"):
        run(tmp_path / "videos.csv")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ManifestError, match="is no CSV file, expected vggsound.csv"):
        run(tmp_path / "x.txt")
    with pytest.raises(UnknownNameError, match="option of recipe 'vggsound'"):
        registry.build("recipe", "vggsound", {"language": "en"})
