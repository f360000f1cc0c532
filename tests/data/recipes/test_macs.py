from pathlib import Path

import pytest

from clapkit import registry
from clapkit.errors import ManifestError, UnknownNameError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

YAML = """\
files:
- filename: airport-barcelona-0-0-a.wav
  annotations:
  - {annotator_id: 12, sentence: 'People talk: an announcement', tags: [adults_talking, announcement]}
  - {annotator_id: 7, sentence: no, tags: [footsteps]}
- filename: street_traffic-lisbon-1000-40000-a.wav
  annotations:
  - {annotator_id: 7, sentence: Cars pass, tags: []}
  - {annotator_id: 12, sentence: Traffic, tags: [traffic_noise]}
  - {annotator_id: 3, sentence: A road}
"""
META = (
    "filename\tscene_label\tidentifier\tsource_label\n"
    "audio/airport-barcelona-0-0-a.wav\tairport\tbarcelona-0\ta\n"
    "audio/street_traffic-lisbon-1000-40000-a.wav\tstreet_traffic\tlisbon-x\ta\n"
)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def corpus(folder: Path, text: str = YAML) -> Path:
    (folder / "MACS.yaml").write_text(text, encoding="utf-8")
    (folder / "MACS_competence.csv").write_text("annotator_id\tcompetence\n12\t0.5\n7\t0.25\n", encoding="utf-8")
    (folder / "tau_meta").mkdir()
    (folder / "tau_meta/meta.csv").write_text(META, encoding="utf-8")
    touch(folder / "audio/airport-barcelona-0-0-a.wav")
    touch(folder / "audio/street_traffic-lisbon-1000-40000-a.wav")
    return folder


def read(source: Path, *, audio_dir: Path | None = None) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "macs")
    request = RecipeRequest(source=source, audio_dir=audio_dir, output_dir=source, seed=0, workers=1, reporter=SilentReporter())
    items = list(recipe.clips(request))
    clips = [item for item in items if isinstance(item, Clip)]
    return clips, [item for item in items if isinstance(item, Rejection)], recipe.describe(clips)


def test_every_clip_is_read_with_as_many_captions_as_it_has(tmp_path: Path) -> None:
    clips, rejections, description = read(corpus(tmp_path))
    assert rejections == []
    assert [(clip.id, clip.audio) for clip in clips] == [
        ("macs/airport-barcelona-0-0-a", "audio/airport-barcelona-0-0-a.wav"),
        ("macs/street_traffic-lisbon-1000-40000-a", "audio/street_traffic-lisbon-1000-40000-a.wav"),
    ]
    assert [len(clip.captions) for clip in clips] == [2, 3]
    assert {clip.split for clip in clips} == {None}
    assert description.official == {}
    assert description.facts["complete"] == {"clips": 3930, "captions": 17275}
    assert description.warnings == []


def test_a_sentence_that_yaml_takes_for_a_truth_value_stays_text(tmp_path: Path) -> None:
    clips, _, _ = read(corpus(tmp_path))
    assert [caption.text for caption in clips[0].captions] == ["People talk: an announcement", "no"]


def test_scenes_are_labels_and_places_are_sources(tmp_path: Path) -> None:
    clips, _, description = read(corpus(tmp_path))
    assert [(clip.labels, clip.source) for clip in clips] == [
        (("airport",), "tau/barcelona-0"),
        (("street traffic",), "tau/lisbon-x"),
    ]
    assert description.facts["scenes_from"] == "meta.csv"


def test_without_meta_the_file_name_says_scene_and_place(tmp_path: Path) -> None:
    (corpus(tmp_path) / "tau_meta/meta.csv").unlink()
    clips, _, description = read(tmp_path)
    assert [(clip.labels, clip.source) for clip in clips] == [
        (("airport",), "tau/barcelona-0"),
        (("street traffic",), "tau/lisbon-1000"),
    ]
    assert description.facts["scenes_from"] == "file names"


def test_a_clip_of_unknown_place_is_warned_about(tmp_path: Path) -> None:
    touch(tmp_path / "audio/x.wav")
    clips, _, description = read(corpus(tmp_path / "audio", "files: [{filename: x.wav, annotations: [{sentence: A.}]}]"))
    assert (clips[0].labels, clips[0].source) == ((), "macs/x")
    assert description.warnings[0].startswith("clips without a scene, so without the place that keeps splits apart: 1")


def test_annotators_tags_and_competences_stand_in_the_order_of_the_captions(tmp_path: Path) -> None:
    clips, _, _ = read(corpus(tmp_path))
    assert clips[0].extra == {
        "annotators": ["12", "7"],
        "tags": [["adults talking", "announcement"], ["footsteps"]],
        "competences": [0.5, 0.25],
    }
    assert clips[1].extra["tags"] == [[], ["traffic noise"], []]
    assert clips[1].extra["competences"] == [0.25, 0.5, None]


def test_without_competences_there_are_none(tmp_path: Path) -> None:
    (corpus(tmp_path) / "MACS_competence.csv").unlink()
    clips, _, _ = read(tmp_path)
    assert "competences" not in clips[0].extra


def test_an_empty_sentence_is_refused_and_the_clip_stays(tmp_path: Path) -> None:
    clips, (rejection,), _ = read(corpus(tmp_path, YAML.replace("sentence: no", "sentence: ' '")))
    assert len(clips) == 2
    assert (rejection.item, rejection.check) == ("macs/airport-barcelona-0-0-a caption 2", "empty_caption")
    assert clips[0].extra == {"annotators": ["12"], "tags": [["adults talking", "announcement"]], "competences": [0.5]}


def test_missing_audio_is_counted(tmp_path: Path) -> None:
    (corpus(tmp_path) / "audio/airport-barcelona-0-0-a.wav").unlink()
    clips, (rejection,), _ = read(tmp_path)
    assert len(clips) == 1
    assert (rejection.item, rejection.kind, rejection.split) == ("macs/airport-barcelona-0-0-a", "missing", None)


def test_the_annotations_can_be_the_source(tmp_path: Path) -> None:
    clips, _, _ = read(corpus(tmp_path) / "MACS.yaml", audio_dir=tmp_path / "audio")
    assert [clip.audio for clip in clips][0] == "airport-barcelona-0-0-a.wav"


@pytest.mark.parametrize("entry", ["text", "{annotations: []}", "{filename: y.wav, annotations: text}", "{filename: x.wav}"])
def test_entries_that_cannot_be_used_are_refused(tmp_path: Path, entry: str) -> None:
    text = f"files: [{{filename: x.wav, annotations: [{{sentence: A.}}]}}, {entry}]"
    touch(tmp_path / "x.wav")
    clips, (rejection,), _ = read(corpus(tmp_path, text))
    assert len(clips) == 1
    assert rejection.item == "MACS.yaml file 2"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("files: [", "not YAML"),
        ("[1]", "no list of files found"),
        ("files: {}", "no list of files found"),
        ("!!python/object/apply:os.getcwd []", "no list of files found"),
    ],
)
def test_a_file_that_is_no_annotation_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ManifestError, match=match):
        read(corpus(tmp_path, text))


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no MACS\.yaml found"):
        read(tmp_path)


def test_competences_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    (corpus(tmp_path) / "MACS_competence.csv").write_text("annotator_id\tcompetence\n12\tgood\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="line 2: no annotator with a number"):
        read(tmp_path)


def test_there_are_no_options() -> None:
    with pytest.raises(UnknownNameError, match="split"):
        registry.build("recipe", "macs", {"split": "test"})
