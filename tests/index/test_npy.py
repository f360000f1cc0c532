import numpy as np
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index.npy import HEADER_BYTES, header, open_array


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rows", [0, 1, 10**15])
def test_a_header_has_one_size_whatever_the_number_of_rows(rows, dtype):
    assert len(header(rows, 4096, dtype=dtype)) == HEADER_BYTES


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numpy_reads_what_the_header_describes(tmp_path, dtype):
    vectors = np.arange(12).reshape(3, 4).astype(dtype)
    path = tmp_path / "v.npy"
    path.write_bytes(header(3, 4, dtype=dtype) + vectors.tobytes())
    loaded = np.load(path)
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded, vectors)
    np.testing.assert_array_equal(open_array(path, remedy="r"), vectors)


@pytest.mark.parametrize("order", ["C", "F"])
def test_files_of_numpy_are_mapped_in_either_order(tmp_path, order):
    array = np.asarray(np.random.default_rng(0).normal(size=(5, 3)), order=order)
    np.save(tmp_path / "v.npy", array)
    opened = open_array(tmp_path / "v.npy", remedy="r")
    np.testing.assert_array_equal(opened, array)
    assert isinstance(opened, np.memmap)
    assert not opened.flags.writeable


def test_a_header_of_version_two_is_read(tmp_path):
    with (tmp_path / "v.npy").open("wb") as file:
        np.lib.format.write_array(file, np.ones((2, 2)), version=(2, 0))
    np.testing.assert_array_equal(open_array(tmp_path / "v.npy", remedy="r"), np.ones((2, 2)))


def test_an_open_array_outlives_its_file(tmp_path):
    np.save(tmp_path / "v.npy", np.ones((2, 2)))
    opened = open_array(tmp_path / "v.npy", remedy="r")
    (tmp_path / "v.npy").unlink()
    assert opened.sum() == 4


def version_three(array):
    with_version = bytearray(array)
    with_version[6] = 3
    return bytes(with_version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # 128 bytes of header and 6 numbers of 8 bytes: 176.
        (lambda data: data[:-1], r"cut short: 175 bytes, expected 176 for float64 \[3, 2\]\); do it again"),
        (lambda data: data + b"\0", "too long: 177 bytes, expected 176"),
        (lambda data: data[:60], "cannot be read"),
        (lambda data: b"", "cannot be read"),
        (lambda data: b"PK" + data, "cannot be read"),
        (version_three, "version 3.0, expected 1.0 or 2.0"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, change, message):
    path = tmp_path / "v.npy"
    np.save(path, np.ones((3, 2)))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(EmbeddingError, match=message) as caught:
        open_array(path, remedy="do it again")
    assert str(caught.value).startswith(f"{path}: cannot be read")
    assert "\n" not in str(caught.value)


def test_pickled_objects_and_missing_files_are_refused(tmp_path):
    np.save(tmp_path / "v.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(EmbeddingError, match="pickled Python objects, expected numbers"):
        open_array(tmp_path / "v.npy", remedy="r")
    with pytest.raises(EmbeddingError, match="none.npy: no such file; look elsewhere"):
        open_array(tmp_path / "none.npy", remedy="look elsewhere")
