import dataclasses
import json

import pytest

from clapkit.errors import EmbeddingError
from clapkit.index.layout import TableInfo, read_info, remove_others, replacing, statistics_file, table_files, write_info


def make_info(**changes):
    info = TableInfo(
        width=8,
        dtype="float16",
        counts={"audio": 5, "text": 3},
        model_path="/models/m",
        model_fingerprint="f" * 64,
        audio_policy={"window_s": 1.0},
        data={"name": "toy"},
        files={"audio": table_files("audio", 3), "text": table_files("text", 3)},
        id="abc",
        generation=3,
    )
    return dataclasses.replace(info, **changes)


def format_1(**changes):
    return {
        "clapkit_table": 1,
        "modality": "audio",
        "width": 8,
        "dtype": "float16",
        "counts": {"audio": 5},
        "model": {"path": "/models/m", "relative_path": "../m", "fingerprint": "f"},
        "audio_policy": {},
        "data": {},
    } | changes


def test_a_description_comes_back_as_it_was_written(tmp_path):
    write_info(tmp_path, make_info())
    assert read_info(tmp_path) == make_info(directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_a_model_that_is_not_known_stays_unknown(tmp_path):
    write_info(tmp_path, make_info(model_path="", model_fingerprint=""))
    assert read_info(tmp_path).model_path == ""


def test_files_are_named_relative_to_the_folder(tmp_path):
    write_info(tmp_path, make_info())
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["clapkit_table"] == 2
    assert content["generation"] == 3
    assert content["files"] == {
        "audio": ["audio_emb/audio_emb_3.npy", "metadata/metadata_3.parquet"],
        "text": ["text_emb/text_emb_3.npy", "text_metadata/metadata_3.parquet"],
    }
    assert statistics_file("audio", 3) == "statistics/audio_3.npz"


def test_format_1_names_the_files_that_it_always_had(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(format_1()))
    info = read_info(tmp_path)
    assert info.files == {"audio": ("audio_emb/audio_emb_0.npy", "metadata/metadata_0.parquet")}
    assert (info.generation, info.directory) == (0, tmp_path)


def test_descriptions_of_format_1_that_differ_have_ids_that_differ(tmp_path):
    ids = []
    for fingerprint in ("f", "g", "f"):
        (tmp_path / "table.json").write_text(json.dumps(format_1(data={"fingerprint": fingerprint})))
        ids.append(read_info(tmp_path).id)
    assert ids[0] == ids[2] != ids[1]
    assert len(ids[0]) == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "table.json: no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", "table format None"),
        ('{"clapkit_table": 99}', "table format 99, this clapkit reads 1 and 2"),
        ('{"clapkit_table": 1}', "damaged .KeyError"),
        ('{"clapkit_table": 2}', "damaged .KeyError"),
        (json.dumps(format_1(clapkit_table=2)), "damaged .KeyError"),
        (json.dumps(format_1(clapkit_table=2, files={"audio": ["one"]}, id="", generation=0)), "damaged .ValueError"),
        (json.dumps(format_1(counts=[5])), "damaged .AttributeError"),
        (json.dumps(format_1(counts={"video": 3})), r"counts name \['video'\]"),
        (json.dumps(format_1(counts={})), r"counts name \[\]"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "table.json").write_text(text)
    with pytest.raises(EmbeddingError, match=message) as caught:
        read_info(tmp_path)
    assert "\n" not in str(caught.value)


KEPT = {
    "table.json",
    "run.json",
    "audio_emb/audio_emb_3.npy",
    "metadata/metadata_3.parquet",
    "text_emb/text_emb_3.npy",
    "text_metadata/metadata_3.parquet",
    "statistics/audio_3.npz",
    "statistics/text_3.npz",
    "sketch/audio_3.npy",
    "sketch/audio_3.npz",
    "index/ivf_audio_2.faiss",
    "metadata/notes.txt",
}
LEFT_OVER = {
    ".table.json.77.tmp",
    "audio_emb/audio_emb_2.npy",
    "audio_emb/.audio_emb_4.npy.77.tmp",
    "metadata/metadata_4.parquet",
    "metadata/.metadata_4.parquet.1.tmp",
    "text_metadata/metadata_2.parquet",
    "statistics/audio_2.npz",
    "statistics/.text_4.npz.5.tmp",
    "sketch/audio_2.npy",
    "sketch/text_2.npz",
    "sketch/.audio_4.npy.5.tmp",
}


def test_only_what_is_not_published_and_is_ours_is_removed(tmp_path):
    for name in KEPT | LEFT_OVER:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_others(tmp_path, make_info())
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == KEPT


def test_removing_from_a_folder_that_is_not_there_does_nothing(tmp_path):
    remove_others(tmp_path / "none", None)
    assert not (tmp_path / "none").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file"

    def write_half(text):
        with replacing(path) as temporary:
            temporary.write_text(text)
            raise OSError("disk full")

    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half("half")
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("key", ["data", "audio_policy"])
def test_descriptions_that_are_no_objects_are_refused(tmp_path, key):
    write_info(tmp_path, make_info())
    content = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps(content | {key: []}))
    with pytest.raises(EmbeddingError, match="damaged .AttributeError: 'list' object has no attribute 'items'"):
        read_info(tmp_path)
