import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clapkit.data import tar_index as module
from clapkit.data.tar_index import compression, normal_name, tar_index
from clapkit.errors import AudioError

NAMES = [
    "a.flac",
    "b.json",
    "folder/c.wav",
    "x" * 120 + ".flac",
    "y" * 90 + "/" + "z" * 90 + ".wav",
    "ü犬.flac",
    "./d.wav",
    "e//f.wav",
]


def pack(path: Path, members: dict[str, bytes], *, format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_lie_where_the_standard_library_finds_them(tmp_path: Path, format: int) -> None:
    names = [name for name in NAMES if format != tarfile.USTAR_FORMAT or len(name) < 100]
    contents = {name: os.urandom(number * 700) for number, name in enumerate(names)}
    index = tar_index(str(pack(tmp_path / "0.tar", contents, format=format)))
    with tarfile.open(tmp_path / "0.tar") as archive:
        expected = {member.name: (member.offset_data, member.size) for member in archive if member.isreg()}
    assert len(expected) == len(names)
    assert {name: index.find(normal_name(name)) for name in expected} == expected
    assert index.find("g.wav") is None
    assert index.damage is None
    assert index.num_bytes == (tmp_path / "0.tar").stat().st_size


def test_only_regular_files_are_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, kind in (("dir", tarfile.DIRTYPE), ("link.wav", tarfile.SYMTYPE), ("hard.wav", tarfile.LNKTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "a.wav"
            archive.addfile(header)
        header = tarfile.TarInfo("a.wav")
        header.size = 3
        archive.addfile(header, io.BytesIO(b"abc"))
    index = tar_index(str(tmp_path / "0.tar"))
    assert [index.find(name) is None for name in ("dir", "link.wav", "hard.wav", "a.wav")] == [True, True, True, False]


def test_of_two_members_with_one_name_the_first_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for content in (b"first", b"second"):
            header = tarfile.TarInfo("a.wav")
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    assert tar_index(str(tmp_path / "0.tar")).find("a.wav") == (512, 5)


def test_an_empty_archive_has_no_members(tmp_path: Path) -> None:
    index = tar_index(str(pack(tmp_path / "0.tar", {})))
    assert (len(index.names), index.damage) == (0, None)


def test_what_lies_in_front_of_damage_is_found(tmp_path: Path) -> None:
    path = pack(tmp_path / "0.tar", {"a.wav": b"1" * 600, "b.wav": b"2" * 600, "c.wav": b"3"})
    content = bytearray(path.read_bytes())
    content[2 * 1536 : 2 * 1536 + 10] = b"\xff" * 10  # the name in the third header: each member takes three blocks
    path.write_bytes(content)
    index = tar_index(str(path))
    assert [index.find(name) is None for name in ("a.wav", "b.wav", "c.wav")] == [False, False, True]
    assert index.damage == "bad checksum"


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b"short"])
def test_what_is_no_tar_has_no_members_and_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    index = tar_index(str(tmp_path / "0.tar"))
    assert len(index.names) == 0
    assert index.damage == "no tar header at its start"


@pytest.mark.parametrize(("kind", "mode"), [("gzip", "w:gz"), ("bzip2", "w:bz2"), ("xz", "w:xz")])
def test_compressed_archives_are_recognised_by_their_bytes(tmp_path: Path, kind: str, mode: str) -> None:
    tarfile.open(tmp_path / "0.tar", mode).close()  # type: ignore[call-overload]
    assert compression(tmp_path / "0.tar") == kind
    with pytest.raises(AudioError, match=rf"0.tar: is compressed \({kind}\).*unpack it"):
        tar_index(str(tmp_path / "0.tar"))
    assert compression(pack(tmp_path / "1.tar", {"a": b"x"})) is None
    assert compression(tmp_path / "none.tar") is None


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="0.tar: cannot be opened"):
        tar_index(str(tmp_path / "0.tar"))


def test_an_archive_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = pack(tmp_path / "0.tar", {"a.wav": b"1"})
    first = tar_index(str(path))
    assert tar_index(str(path)) is first
    pack(path, {"b.wav": b"1" * 1000})
    os.utime(path, ns=(1, 1))
    assert tar_index(str(path)).find("b.wav") == (512, 1000)


def test_threads_that_ask_at_once_read_an_archive_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "0.tar", {f"{number}.wav": b"x" * number for number in range(200)})
    scans: list[str] = []
    scan = module._scan
    monkeypatch.setattr(module, "_scan", lambda archive: scans.append(archive) or scan(archive))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: tar_index(str(path)).find(f"{number % 200}.wav"), range(800)))
    assert len(scans) == 1
    assert [size for _, size in found] == [number % 200 for number in range(800)]


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    for _ in range(2):
        with pytest.raises(AudioError, match="cannot be opened"):
            tar_index(str(path))
    pack(path, {"a.wav": b"1"})
    assert tar_index(str(path)).find("a.wav") == (512, 1)


def test_indexes_that_were_not_used_for_longest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_indexes", type(module._indexes)())
    monkeypatch.setattr(module, "_MAX_INDEXED_MEMBERS", 5)
    paths = [str(pack(tmp_path / f"{n}.tar", {f"{m}.wav": b"x" for m in range(2)})) for n in range(4)]
    first, second = tar_index(paths[0]), tar_index(paths[1])
    assert tar_index(paths[0]) is first  # now the second is the oldest
    tar_index(paths[2])
    assert sorted(np.unique([key[0] for key in module._indexes])) == [paths[0], paths[2]]
    assert tar_index(paths[0]) is first
    assert tar_index(paths[1]) is not second
