from pathlib import Path

import numpy as np
import pytest

from clapkit.steps import query_cache

VECTOR = np.array([0.6, 0.8, 0.0], dtype=np.float32)


def test_a_vector_comes_back_for_the_same_model_and_text_only(tmp_path):
    query_cache.store(tmp_path, "dog", VECTOR, fingerprint="a" * 64)
    np.testing.assert_array_equal(query_cache.lookup(tmp_path, "dog", fingerprint="a" * 64, width=3), VECTOR)
    assert query_cache.lookup(tmp_path, "dogs", fingerprint="a" * 64, width=3) is None
    assert query_cache.lookup(tmp_path, "dog", fingerprint="b" * 64, width=3) is None
    assert query_cache.lookup(tmp_path, "dog", fingerprint="a" * 64, width=4) is None


def test_a_text_is_another_in_another_language(tmp_path):
    def found(text, language):
        return query_cache.lookup(tmp_path, text, fingerprint="a", width=3, language=language)

    query_cache.store(tmp_path, "gift", VECTOR, fingerprint="a")
    np.testing.assert_array_equal(found("gift", "en"), VECTOR)  # what is kept without a tag is English
    assert found("gift", "de") is None
    query_cache.store(tmp_path, "gift", VECTOR[::-1], fingerprint="a", language="de")
    np.testing.assert_array_equal(found("gift", "de"), VECTOR[::-1])
    np.testing.assert_array_equal(found("gift", "en"), VECTOR)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", VECTOR[:2], VECTOR.astype(np.float64), VECTOR * np.nan, VECTOR * 2, np.array([{}], dtype=object)],
)
def test_a_damaged_file_counts_as_missing(tmp_path, content):
    query_cache.store(tmp_path, "dog", VECTOR, fingerprint="a")
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content, allow_pickle=True)
    assert query_cache.lookup(tmp_path, "dog", fingerprint="a", width=3) is None


def test_texts_with_slashes_and_strange_characters_are_kept(tmp_path):
    for text in ("../../etc", "a/b", "ü" * 400, "\udcff"):
        query_cache.store(tmp_path, text, VECTOR, fingerprint="a")
        assert query_cache.lookup(tmp_path, text, fingerprint="a", width=3) is not None
    assert len(list(tmp_path.rglob("*.npy"))) == 4


def test_a_cache_that_cannot_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "queries").write_text("a file where a folder should be")
    query_cache.store(tmp_path, "dog", VECTOR, fingerprint="a")
    assert query_cache.lookup(tmp_path, "dog", fingerprint="a", width=3) is None


def test_the_folder_follows_the_environment():
    assert query_cache.cache_dir({"CLAPKIT_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert query_cache.cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/clapkit")
    assert query_cache.cache_dir({}) == Path.home() / ".cache/clapkit"
