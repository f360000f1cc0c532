import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import ipc, parquet

from clapkit import registry
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, RecipeRequest, Rejection, SilentReporter

STORED = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
FLAC, OGG = b"fLaC-1", b"OggS-2"


class Reporter(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def table(columns: dict[str, Any], features: dict[str, Any] | None = None, **types: pyarrow.DataType) -> pyarrow.Table:
    types = {"audio": STORED} | types
    made = pyarrow.table({name: pyarrow.array(values, types.get(name)) for name, values in columns.items()})
    if features is None:
        return made
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def as_parquet(path: Path, made: pyarrow.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made, path)
    return path


def saved(folder: Path, made: pyarrow.Table, *, split: str | None = None, num_files: int = 1, **state: Any) -> Path:
    """A data set in the layout of ``save_to_disk``."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{num_files:05d}.arrow" for number in range(num_files)]
    size = -(-made.num_rows // num_files)
    for number, name in enumerate(names):
        with ipc.new_stream(folder / name, made.schema) as writer:
            writer.write_table(made.slice(number * size, size))
    content = {"_data_files": [{"filename": name} for name in names], "_split": split} | state
    (folder / "state.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def read(source: Path, folder: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip | Rejection]:
    values: dict[str, Any] = {"audio_dir": None, "seed": 0, "workers": 1, "reporter": SilentReporter()}
    request = RecipeRequest(source=source, output_dir=folder / "run", **(values | changes))
    return list(registry.build("recipe", "hf", options).clips(request))


def files(folder: Path) -> dict[str, bytes]:
    root = folder / "run" / "audio"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def stored(*contents: bytes | None, path: str | None = None) -> list[dict[str, Any]]:
    return [{"bytes": content, "path": path} for content in contents]


def rejection(item: Clip | Rejection) -> Rejection:
    assert isinstance(item, Rejection), item
    return item


def test_parquet_with_stored_bytes_becomes_clips_and_files(tmp_path: Path) -> None:
    columns = {
        "audio": stored(FLAC, path="sub/dog 1.flac"),
        "caption": ["A dog."],
        "labels": [["dog", "bark"]],
        "fold": [2],
        "mood": ["calm"],
        "number": [None],
    }
    as_parquet(tmp_path / "s" / "data" / "train-00000-of-00001.parquet", table(columns))
    assert read(tmp_path / "s", tmp_path) == [
        Clip(
            id="data/train-00000-of-00001/000000",
            audio="data/train-00000-of-00001/000000-dog 1.flac",
            captions=(Caption("A dog."),),
            labels=("dog", "bark"),
            fold=2,
            split="train",
            extra={"mood": "calm"},
        )
    ]
    assert files(tmp_path) == {"data/train-00000-of-00001/000000-dog 1.flac": FLAC}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/validation-00000-of-00001.parquet", "val"),
        ("data/eval_clean-00000-of-00001.parquet", "test"),
        ("data/extra-00000-of-00001.parquet", "extra"),
        ("test.parquet", "test"),
        ("corpus-train.arrow.parquet", "train"),
        ("dev/part-00000-of-00001.parquet", "val"),
        ("train/0000.parquet", "train"),
        ("things.parquet", None),
    ],
)
def test_the_split_comes_from_names(tmp_path: Path, name: str, split: str | None) -> None:
    as_parquet(tmp_path / "s" / name, table({"audio": stored(FLAC)}))
    (clip,) = read(tmp_path / "s", tmp_path)
    assert isinstance(clip, Clip)
    assert clip.split == split


def test_a_split_column_wins_and_ids_carry_the_split(tmp_path: Path) -> None:
    made = table({"audio": stored(FLAC, OGG), "split": ["validation", "extra"], "id": ["1", "1"]})
    source = as_parquet(tmp_path / "train.parquet", made)
    assert [(clip.id, clip.split) for clip in read(source, tmp_path) if isinstance(clip, Clip)] == [
        ("val/1", "val"),
        ("extra/1", "extra"),
    ]


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    made = table({"audio": stored(FLAC, OGG, FLAC), "text": ["A.", "B.", "C."]})
    source = saved(tmp_path / "s", made, split="validation", num_files=2)
    found = read(source, tmp_path)
    assert [(clip.id, clip.split, clip.captions[0].text) for clip in found if isinstance(clip, Clip)] == [
        ("data-00000-of-00002/000000", "val", "A."),
        ("data-00000-of-00002/000001", "val", "B."),
        ("data-00001-of-00002/000000", "val", "C."),
    ]
    assert len(files(tmp_path)) == 3


def test_a_saved_dictionary_of_splits_is_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved(tmp_path / "s" / split, table({"audio": stored(OGG)}), split=split)
    (tmp_path / "s" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = read(tmp_path / "s", tmp_path)
    assert [(clip.id, clip.split) for clip in found if isinstance(clip, Clip)] == [
        ("train/data-00000-of-00001/000000", "train"),
        ("test/data-00000-of-00001/000000", "test"),
    ]


@pytest.mark.parametrize("is_saved", [True, False])
def test_class_numbers_get_the_names_of_the_data_set(tmp_path: Path, is_saved: bool) -> None:
    features = {"audio": {"_type": "Audio"}, "target": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    made = table({"audio": stored(FLAC, OGG, OGG), "target": [1, -1, 2]}, features)
    source = saved(tmp_path / "s", made) if is_saved else as_parquet(tmp_path / "s.parquet", made)
    first, second, third = read(source, tmp_path)
    assert isinstance(first, Clip)
    assert first.labels == ("dog",)
    assert isinstance(second, Clip)
    assert second.labels == ()
    assert "class 2, but the data set names 2" in rejection(third).reason


def test_lists_of_class_numbers_get_names(tmp_path: Path) -> None:
    labels = {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["cat", "dog", "owl"]}}
    made = table({"audio": stored(FLAC), "labels": [[2, 0]]}, {"labels": labels})
    (clip,) = read(as_parquet(tmp_path / "s.parquet", made), tmp_path)
    assert isinstance(clip, Clip)
    assert clip.labels == ("owl", "cat")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"captions": [["A.", "B."]]}, ["A.", "B."]),
        ({"caption_1": ["A."], "caption_2": ["B."], "title": ["T"]}, ["A.", "B."]),
        ({"title": ["T"], "text": ["A."]}, ["A."]),
        ({"title": ["T"]}, ["T"]),
        ({"captions": [{"en": ["A."], "de": ["B."]}]}, ["A.", "B."]),
    ],
)
def test_caption_columns_are_those_of_table(tmp_path: Path, columns: dict[str, Any], expected: list[str]) -> None:
    (clip,) = read(as_parquet(tmp_path / "s.parquet", table({"audio": stored(FLAC)} | columns)), tmp_path)
    assert isinstance(clip, Clip)
    assert [caption.text for caption in clip.captions] == expected


def test_columns_can_be_named(tmp_path: Path) -> None:
    columns = {"sound": stored(FLAC), "audio": ["x"], "said": ["Un chien."], "l": ["fr"], "kind": ["dog"], "of": ["rec"]}
    made = table(columns | {"key": ["k"], "part": ["dev"]}, sound=STORED, audio=pyarrow.string())
    options = {"audio": "sound", "caption": "said", "lang": "l", "label": "kind", "source": "of", "id": "key", "split": "part"}
    (clip,) = read(as_parquet(tmp_path / "s.parquet", made), tmp_path, options)
    assert clip == Clip(
        id="val/k",
        audio="s/000000.flac",
        captions=(Caption("Un chien.", "fr"),),
        labels=("dog",),
        split="val",
        source="rec",
        extra={"audio": "x"},
    )


def test_an_image_beside_the_sound_is_not_taken_for_it_and_its_bytes_are_left_out_aloud(tmp_path: Path) -> None:
    made = table({"image": stored(b"\x89PNG"), "audio": stored(FLAC)}, image=STORED)
    reporter = Reporter()
    (clip,) = read(as_parquet(tmp_path / "s.parquet", made), tmp_path, reporter=reporter)
    assert isinstance(clip, Clip)
    assert clip.extra == {}
    assert list(files(tmp_path).values()) == [FLAC]
    assert "columns left out because they hold bytes: image" in reporter.said[0]


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"fLaC....", ".flac"),
        (b"OggS....", ".ogg"),
        (b"RIFF....WAVE", ".wav"),
        (b"ID3.....", ".mp3"),
        (b"\xff\xfb\x90\x00", ".mp3"),
        (b"FORM....AIFF", ".aiff"),
    ],
)
def test_the_format_of_nameless_bytes_is_recognised(tmp_path: Path, content: bytes, suffix: str) -> None:
    read(as_parquet(tmp_path / "s.parquet", table({"audio": stored(content)})), tmp_path)
    assert files(tmp_path) == {f"s/000000{suffix}": content}


def test_paths_lead_to_files_below_the_folder_and_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    (folder / "wavs").mkdir(parents=True)
    (folder / "wavs" / "a.wav").write_bytes(b"a")
    (folder / "b.wav").write_bytes(b"b")
    (tmp_path / "outside.wav").write_bytes(b"c")
    paths = ["wavs/a.wav", "/home/somebody/b.wav", "C:\\sounds\\b.wav", "../outside.wav", str(tmp_path / "outside.wav")]
    made = table({"audio": [{"bytes": None, "path": path} for path in paths]})
    first, second, third, climbing, absolute = read(as_parquet(folder / "s.parquet", made), tmp_path)
    assert [clip.audio for clip in (first, second, third) if isinstance(clip, Clip)] == [
        str(folder / "wavs" / "a.wav"),
        str(folder / "b.wav"),
        str(folder / "b.wav"),
    ]
    for item in (climbing, absolute):
        assert rejection(item).kind == "missing"
        assert "get the file, or set --audio-dir" in rejection(item).reason
    assert files(tmp_path) == {}


def test_a_column_of_paths_is_enough(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.wav").write_bytes(b"a")
    made = table({"file_name": ["a.wav"]})
    source = as_parquet(tmp_path / "s" / "s.parquet", made)
    (clip,) = read(source, tmp_path, audio_dir=tmp_path / "elsewhere")
    assert isinstance(clip, Clip)
    assert clip.audio == str(tmp_path / "elsewhere" / "a.wav")


@pytest.mark.parametrize(
    ("samples", "subtype"),
    [
        (np.random.default_rng(0).uniform(-1, 1, 300).astype(np.float32), "FLOAT"),
        (np.random.default_rng(0).uniform(-1, 1, 300).astype(np.float32).astype(np.float64), "FLOAT"),
        (np.random.default_rng(0).uniform(-1, 1, 300), "DOUBLE"),
        (np.arange(-100, 100, dtype=np.int16), "PCM_16"),
    ],
)
def test_decoded_samples_are_kept_to_the_bit(tmp_path: Path, samples: np.ndarray, subtype: str) -> None:
    kind = pyarrow.struct({"array": pyarrow.list_(pyarrow.from_numpy_dtype(samples.dtype)), "sampling_rate": pyarrow.int64()})
    made = table({"audio": [{"array": samples, "sampling_rate": 16000}]}, audio=kind)
    (clip,) = read(as_parquet(tmp_path / "s.parquet", made), tmp_path)
    assert isinstance(clip, Clip)
    (content,) = files(tmp_path).values()
    info = soundfile.info(io.BytesIO(content))
    assert (info.subtype, info.samplerate, info.channels) == (subtype, 16000, 1)
    dtype = samples.dtype.name
    assert np.array_equal(soundfile.read(io.BytesIO(content), dtype=dtype)[0], samples)


def test_decoded_channels_become_channels(tmp_path: Path) -> None:
    left, right = [0.5, 0.25, 0.0], [-0.5, -0.25, 0.125]
    kind = pyarrow.struct({"array": pyarrow.list_(pyarrow.list_(pyarrow.float32())), "sampling_rate": pyarrow.int64()})
    made = table({"audio": [{"array": [left, right], "sampling_rate": 8000}]}, audio=kind)
    read(as_parquet(tmp_path / "s.parquet", made), tmp_path)
    (content,) = files(tmp_path).values()
    assert soundfile.read(io.BytesIO(content))[0].T.tolist() == [left, right]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "no audio"),
        ({"bytes": b"", "path": "a.wav"}, "empty (0 bytes)"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ({"bytes": b"\0\0\0\x20ftypM4A", "path": "a.m4a"}, "expected flac, wav, ogg or mp3"),
    ],
)
def test_cells_without_audio_are_refused(tmp_path: Path, cell: Any, reason: str) -> None:
    item, clip = read(as_parquet(tmp_path / "s.parquet", table({"audio": [cell, *stored(FLAC)]})), tmp_path)
    assert rejection(item).item == "s row 1"
    assert reason in rejection(item).reason
    assert isinstance(clip, Clip)


def test_repeated_ids_and_empty_captions_are_refused(tmp_path: Path) -> None:
    made = table({"audio": stored(FLAC, OGG), "id": ["a", "a"], "captions": [["A.", ""], ["B."]]})
    empty, clip, repeated = read(as_parquet(tmp_path / "s.parquet", made), tmp_path)
    assert (rejection(empty).item, rejection(empty).check) == ("a caption 2", "empty_caption")
    assert isinstance(clip, Clip)
    assert (clip.id, clip.captions) == ("a", (Caption("A."),))
    assert "id 'a' is already used" in rejection(repeated).reason
    assert list(files(tmp_path).values()) == [FLAC]


def test_values_that_json_lacks_are_converted(tmp_path: Path) -> None:
    day = pyarrow.array([0], pyarrow.date32())
    made = table({"audio": stored(FLAC), "gain": [float("nan")], "place": [{"lat": 1.5, "name": "x"}]}).append_column(
        "day", day
    )
    (clip,) = read(as_parquet(tmp_path / "s.parquet", made), tmp_path)
    assert isinstance(clip, Clip)
    assert clip.extra == {"place": {"lat": 1.5, "name": "x"}, "day": "1970-01-01"}


def test_an_arrow_file_that_is_cut_keeps_what_was_read(tmp_path: Path) -> None:
    made = pyarrow.concat_tables([table({"audio": stored(FLAC + bytes(5000))}) for _ in range(3)])
    source = saved(tmp_path / "s", made)
    (path,) = source.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:9000])
    *found, damage = read(source, tmp_path)
    assert len(found) == 1
    assert "cannot be read after 1 rows" in rejection(damage).reason


def test_hostile_names_stay_below_the_folder(tmp_path: Path) -> None:
    record = json.dumps({"id": "x", "audio": "../../up.flac", "duration_s": 1.0})
    named = as_parquet(tmp_path / "s.parquet", table({"audio": stored(FLAC, path="../../../up\n.flac")}))
    (clip,) = read(named, tmp_path)
    assert isinstance(clip, Clip)
    (name,) = files(tmp_path)
    assert name.startswith("s/000000-up")
    assert name.isprintable()
    exported = as_parquet(tmp_path / "t.parquet", table({"audio": stored(FLAC), "clapkit": [record]}))
    (item,) = read(exported, tmp_path / "2")
    assert "expected a path inside the corpus" in rejection(item).reason
    assert files(tmp_path / "2") == {}


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is no saved data set"):
        read(tmp_path, tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ManifestError, match=r"expected a .parquet or .arrow file"):
        read(tmp_path / "a.txt", tmp_path)
    (tmp_path / "b.parquet").write_text("x")
    with pytest.raises(ManifestError, match=r"b.parquet: cannot be read"):
        read(tmp_path / "b.parquet", tmp_path)
    silent = as_parquet(tmp_path / "c.parquet", table({"caption": ["A."]}))
    with pytest.raises(ManifestError, match="no audio column, columns found: caption"):
        read(silent, tmp_path)
    sound = as_parquet(tmp_path / "d.parquet", table({"audio": stored(FLAC)}))
    with pytest.raises(ManifestError, match=r"no column 'said', columns found: audio; correct -O caption=said"):
        read(sound, tmp_path, {"caption": "said"})
    chosen = saved(tmp_path / "e", table({"audio": stored(FLAC)}), _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(ManifestError, match="flatten_indices"):
        read(chosen, tmp_path)
    (chosen / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(ManifestError, match=r"expected some in this folder"):
        read(chosen, tmp_path)
    (chosen / "state.json").write_text("{")
    with pytest.raises(ManifestError, match="cannot be read as JSON"):
        read(chosen, tmp_path)
