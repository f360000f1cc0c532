import io
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data import audio
from clapkit.data.inspection import Job, inspect
from clapkit.data.members import audio_size, audio_sizes, member_size, open_audio, open_member, split_member
from clapkit.errors import AudioError

FORMATS = [
    ("wav", "PCM_16"),
    ("wav", "FLOAT"),
    ("flac", "PCM_24"),
    ("ogg", "VORBIS"),
    ("mp3", None),
    ("aiff", "PCM_16"),
    ("w64", "PCM_16"),
]


def sound(path: Path, *, subtype: str | None = None, seconds: float = 3.0) -> Path:
    samples = np.random.default_rng(0).uniform(-0.4, 0.4, (int(seconds * 24000), 2))
    soundfile.write(path, samples, 24000, subtype=subtype)
    return path


def pack(path: Path, *files: Path | tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for file in files:
            name, content = (file.name, file.read_bytes()) if isinstance(file, Path) else file
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_a_member_is_read_like_the_unpacked_file(tmp_path: Path, suffix: str, subtype: str | None) -> None:
    file = sound(tmp_path / f"a.{suffix}", subtype=subtype)
    member = pack(tmp_path / "0.tar", ("0.json", b"{}"), file) / file.name
    assert audio.probe(member) == audio.probe(file)
    for found, expected in zip(audio.examine(member), audio.examine(file), strict=True):
        assert found == expected
    assert (audio.probe(member).format, audio.probe(member).subtype) == (audio.probe(file).format, audio.probe(file).subtype)
    for options in ({}, {"start_s": 0.7, "end_s": 1.9}, {"start_s": 2.5}):
        for rate in (24000, 16000):
            found, expected = (audio.load(path, sample_rate=rate, **options) for path in (member, file))
            assert np.array_equal(found, expected)
    window = {"sample_rate": 16000, "offset": 20001, "num_samples": 9000}
    assert np.array_equal(audio.load_window(member, **window), audio.load_window(file, **window))


@pytest.mark.parametrize("decode", [True, False])
def test_an_inspection_of_a_member_is_that_of_the_file(tmp_path: Path, decode: bool) -> None:
    file = sound(tmp_path / "a.flac")
    member = pack(tmp_path / "0.tar", file) / "a.flac"
    found, expected = (inspect(Job(str(path)), decode=decode) for path in (member, file))
    assert found == expected
    assert found.num_bytes == file.stat().st_size
    assert found.problem is None
    assert (found.content is not None) == decode


@pytest.mark.parametrize("content", [b"", b"no audio", b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_bad_members_are_refused_like_bad_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    member = pack(tmp_path / "0.tar", tmp_path / "a.wav") / "a.wav"
    for look in (audio.probe, audio.check):
        with pytest.raises(AudioError) as of_file:
            look(tmp_path / "a.wav")
        with pytest.raises(AudioError) as of_member:
            look(member)
        assert str(of_member.value) == str(of_file.value).replace(str(tmp_path / "a.wav"), str(member))
        assert of_member.value.check == of_file.value.check


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_sound_that_was_cut_before_it_was_packed_is_truncated(tmp_path: Path, suffix: str) -> None:
    file = sound(tmp_path / f"a.{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    member = pack(tmp_path / "0.tar", file) / file.name
    with pytest.raises(AudioError, match="0.tar/a.*truncated") as caught:
        audio.check(member)
    assert caught.value.check == "truncated"


def test_paths_are_split_at_the_tar_file(tmp_path: Path) -> None:
    archive = pack(tmp_path / "train.tar.d" / "0.TAR", ("folder/a.wav", b"x"))
    assert split_member(archive / "folder" / "a.wav") == (str(archive), "folder/a.wav")
    assert split_member(f"{archive}//folder/./a.wav") == (str(archive), "folder/a.wav")
    assert split_member(archive) is None
    assert split_member(tmp_path / "a.wav") is None
    assert split_member(tmp_path / "gone.tar" / "a.wav") is None


def test_a_folder_called_like_a_tar_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "0.tar").mkdir()
    file = sound(tmp_path / "0.tar" / "a.wav")
    assert split_member(file) is None
    assert audio.probe(file).num_frames == 72000
    with pytest.raises(AudioError, match="b.wav: cannot be opened"):
        audio.probe(file.with_name("b.wav"))
    nested = pack(tmp_path / "0.tar" / "1.tar", file)
    assert audio.probe(nested / "a.wav").num_frames == 72000


def test_a_path_below_a_sound_is_no_member(tmp_path: Path) -> None:
    file = sound(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"b.wav: cannot be opened \(Not a directory\)"):
        audio.probe(file / "b.wav")
    with pytest.raises(NotADirectoryError):
        open_audio(file / "b.wav")
    with pytest.raises(AudioError, match="is no member of a tar file"):
        open_member(file)


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    archive = pack(tmp_path / "0.tar", ("a.wav", b"x"))
    with pytest.raises(AudioError, match=r"0.tar: holds no member 'b.wav'; correct the path"):
        audio.load(archive / "b.wav", sample_rate=16000)


def test_a_cut_shard_names_the_shard_and_the_member(tmp_path: Path) -> None:
    first, second, third = (sound(tmp_path / f"{name}.wav", seconds=0.1) for name in "abc")
    archive = pack(tmp_path / "0.tar", first, second, third)
    # A member takes its header and 9,644 bytes in whole blocks: 512 + 19 * 512 = 10,240 bytes.
    archive.write_bytes(archive.read_bytes()[: 10240 + 512 + 1000])
    assert audio.check(archive / "a.wav").num_frames == 2400
    with pytest.raises(
        AudioError, match=r"0.tar: truncated at 11752 bytes inside member 'b.wav', 1000 of its 9644 bytes"
    ) as cut:
        audio.check(archive / "b.wav")
    assert cut.value.check == "truncated"
    with pytest.raises(AudioError, match=r"0.tar: holds no member 'c.wav' before the place where it cannot be read"):
        audio.check(archive / "c.wav")
    assert [member_size(archive / name) for name in ("a.wav", "b.wav", "c.wav")] == [9644, None, None]


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar"])
def test_compressed_shards_are_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    plain = pack(tmp_path / "plain.tar", ("a.wav", b"x"))
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.add(plain, "a.wav")
    with pytest.raises(AudioError, match=rf"{name}: is compressed \(gzip\), its members cannot be read in place; unpack it"):
        audio.probe(tmp_path / name / "a.wav")


def test_sizes_of_members_and_files(tmp_path: Path) -> None:
    file = sound(tmp_path / "a.wav")
    archive = pack(tmp_path / "0.tar", file, ("b.flac", b"12345"))
    paths = [
        str(path) for path in (archive / "b.flac", file, archive / "a.wav", archive / "c", tmp_path / "d", tmp_path, archive)
    ]
    size = file.stat().st_size
    assert list(audio_sizes(paths)) == [5, size, size, None, None, None, archive.stat().st_size]
    assert [member_size(path) for path in paths] == [5, None, size, None, None, None, None]
    assert (audio_size(file), audio_size(archive / "b.flac")) == (size, 5)
    with pytest.raises(AudioError, match="is no regular file"):
        audio_size(tmp_path)
    with pytest.raises(FileNotFoundError):
        audio_size(tmp_path / "d")


def test_a_shard_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    archive = pack(tmp_path / "0.tar", ("a.wav", b"old"))
    assert open_member(archive / "a.wav").read() == b"old"
    pack(tmp_path / "1.tar", ("a.json", b"{}" * 600), ("a.wav", b"new"))
    shutil.move(tmp_path / "1.tar", archive)
    assert open_member(archive / "a.wav").read() == b"new"


def test_threads_read_members_at_once(tmp_path: Path) -> None:
    contents = {f"{number}.bin": bytes([number]) * 5000 for number in range(50)}
    archive = pack(tmp_path / "0.tar", *contents.items())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: open_member(archive / name).read(), list(contents) * 8))
    assert found == list(contents.values()) * 8
