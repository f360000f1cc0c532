import json

import pytest

from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.steps.evaluation.relevance import fingerprint, read_relevance, relevant_pairs
from clapkit.types import Caption, Clip


@pytest.fixture
def manifest(tmp_path):
    """Clips a (rain, wind), b (rain) and c#1 (a "bell") in test, d (drum) in train."""
    texts = {"a": ("rain", "wind"), "b": ("rain",), "c#1": ('a "bell"',), "d": ("drum",)}
    clips = [
        Clip(
            id=name,
            audio=f"{name}.wav",
            duration_s=1.0,
            captions=tuple(map(Caption, said)),
            split="train" if name == "d" else "test",
        )
        for name, said in texts.items()
    ]
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="toy")


@pytest.fixture
def write(tmp_path):
    def write(text, name="relevance.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def pairs(path, manifest):
    found = relevant_pairs(read_relevance(path, manifest), manifest.split("test").clips)
    return list(zip(found.caption.tolist(), found.clip.tolist(), strict=True)), found.warnings


def test_a_text_stands_for_all_captions_that_have_it_and_a_number_for_one(manifest, write):
    # Captions 0 to 3: rain and wind of a, rain of b, bell of c#1.
    found, warnings = pairs(write("query,clip\nrain,c#1\na#2,b\nc#1#1,c#1\n"), manifest)
    assert found == [(0, 2), (1, 1), (2, 2), (3, 2)]
    assert warnings == []


def test_grades_of_nothing_are_not_relevant(manifest, write):
    found, warnings = pairs(write("query,clip,grade\nwind,a,0\nwind,b,0.5\nwind,c#1,true\nrain,a,false\n"), manifest)
    assert found == [(1, 1), (1, 2)]
    assert warnings == ["relevance: 3 of 4 captions have no relevant clip and are no queries"]


def test_pairs_of_other_splits_are_counted(manifest, write):
    found, warnings = pairs(write("query,clip\nwind,d\ndrum,a\nwind,a\n"), manifest)
    assert found == [(1, 0)]
    assert warnings[0] == "relevance: 2 relevant pairs of the table are not among the evaluated clips and are left out"


def test_lines_of_json_are_read_as_well(manifest, write):
    rows = [{"query": 'a "bell"', "clip": "a", "grade": 2}, {"query": "wind", "clip": "a", "grade": True}]
    found, _ = pairs(write("\n".join(map(json.dumps, rows)), "r.jsonl"), manifest)
    assert found == [(1, 0), (3, 0)]


def test_the_fingerprint_is_that_of_the_judgements_and_not_of_the_file(manifest, write):
    first = fingerprint(read_relevance(write("query,clip\nwind,a\na#1,b\n"), manifest))
    assert first == fingerprint(read_relevance(write("clip,query,grade\nb,a#1,2\na,a#2,1\n"), manifest))
    assert first != fingerprint(read_relevance(write("clip,query,grade\nb,a#1,0\na,a#2,1\n"), manifest))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,file\nrain,a\n", "no column 'clip', found query, file; expected query, clip and maybe grade"),
        ("query,clip\nrain,a\nrain,x\n", "line 3: clip 'x' is not in the data, expected the id of a clip"),
        ("query,clip\nthunder,a\n", "line 2: query 'thunder' is no caption of the data, expected its text, or clip_id#number"),
        ("query,clip\na#0,a\n", "query 'a#0' is no caption"),
        ("query,clip\na#3,a\n", "query 'a#3' is no caption"),
        ("query,clip\nrain,a\nrain,b\nrain,a\n", "line 4: judges the same query and clip as line 2, expected one row a pair"),
        ("query,clip,grade\nwind,b,1\na#2,b,0\n", "line 3: judges the same query and clip as line 2, expected one row a pair"),
        ("query,clip,grade\nrain,a,good\n", "line 2: grade 'good', expected a number of at least 0"),
        ("query,clip,grade\nrain,a,-1\n", "line 2: grade '-1', expected a number of at least 0"),
        ("query,clip,grade\nrain,a,nan\n", "line 2: grade 'nan'"),
        ("query,clip,grade\nrain,a,\n", "line 2: grade ''"),
        ("query,clip\n ,a\n", "line 2: query is empty"),
        ("query,clip\nrain\n", "line 2: 1 cells found, 2 expected"),
    ],
)
def test_a_table_that_does_not_fit_the_data_is_refused_by_its_row(manifest, write, text, message):
    with pytest.raises(ManifestError, match=message) as caught:
        read_relevance(write(text), manifest)
    assert str(caught.value).startswith("--relevance ")
    assert "\n" not in str(caught.value)


def test_a_table_without_a_relevant_clip_is_refused(manifest, write):
    judgements = read_relevance(write("query,clip,grade\nrain,a,0\ndrum,a,1\n"), manifest)
    with pytest.raises(ManifestError, match="no caption of the evaluated clips has a relevant clip among them"):
        relevant_pairs(judgements, manifest.split("test").clips)
