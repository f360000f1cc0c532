import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import clapkit
from clapkit.errors import EmbeddingError, RunDirError
from clapkit.steps import vector_cache
from clapkit.steps.vector_cache import VectorCache, policy_scope

SCOPE = policy_scope("weights", {"window_s": 1.0})


def vectors_of(number: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(count, 8)).astype(np.float32)


def spans_of(count: int = 2) -> list[tuple[float, float]]:
    return [(0.1 * number, 0.1 * number + 1 / 3) for number in range(count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "cache.db"


@pytest.fixture
def filled(path):
    with VectorCache(path, scope=SCOPE) as cache:
        for number in range(50):
            cache.put(f"{number:032x}", None, None, vectors_of(number), spans_of(), 2)
    return path


# Keeping ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flushed", [False, True])
def test_what_was_put_is_got_bit_for_bit(path, flushed):
    with VectorCache(path, scope=SCOPE) as cache:
        cache.put("a", 0.25, 1.75, vectors_of(1), spans_of(), 7)
        if flushed:
            cache.flush()
        vectors, spans, num_windows = cache.get("a", 0.25, 1.75)
    np.testing.assert_array_equal(vectors, vectors_of(1))
    assert (vectors.dtype, spans, num_windows) == (np.float32, spans_of(), 7)


def test_vectors_outlive_the_process_that_put_them(filled):
    with VectorCache(filled, scope=SCOPE) as cache:
        for number in range(50):
            np.testing.assert_array_equal(cache.get(f"{number:032x}", None, None)[0], vectors_of(number))


def test_what_is_given_may_be_changed_by_its_owner(filled):
    with VectorCache(filled, scope=SCOPE) as cache:
        cache.get(f"{0:032x}", None, None)[0][:] = 0
        assert cache.get(f"{0:032x}", None, None)[0].any()


def test_content_span_and_scope_tell_entries_apart(path):
    with VectorCache(path, scope=SCOPE) as cache:
        cache.put("a", 0.0, 1.0, vectors_of(1), spans_of(), 2)
        assert cache.get("b", 0.0, 1.0) is None
        assert cache.get("a", 0.0, 2.0) is None
        assert cache.get("a", 0.5, 1.0) is None
        assert cache.get("a", None, None) is None
    with VectorCache(path, scope=policy_scope("other weights", {"window_s": 1.0})) as other:
        assert other.get("a", 0.0, 1.0) is None


def test_the_start_of_a_file_is_zero_seconds(path):
    with VectorCache(path, scope=SCOPE) as cache:
        cache.put("a", None, 1.0, vectors_of(1), spans_of(), 2)
        assert cache.get("a", 0.0, 1.0) is not None


def test_the_newest_of_two_is_kept(path):
    with VectorCache(path, scope=SCOPE) as cache:
        for number in (1, 2):
            cache.put("a", None, None, vectors_of(number), spans_of(), 2)
            cache.flush()
        np.testing.assert_array_equal(cache.get("a", None, None)[0], vectors_of(2))


def test_entries_are_written_in_batches(path, monkeypatch):
    monkeypatch.setattr(vector_cache, "_BATCH_CLIPS", 3)
    with VectorCache(path, scope=SCOPE) as cache, VectorCache(path, scope=SCOPE) as reader:
        for number, is_there in ((0, False), (1, False), (2, True)):
            cache.put(str(number), None, None, vectors_of(number), spans_of(), 2)
            assert (reader.get("0", None, None) is not None) == is_there


@pytest.mark.parametrize(("name", "value"), [("_BATCH_BYTES", 10), ("_BATCH_S", -1.0)])
def test_large_and_late_entries_are_written_at_once(path, monkeypatch, name, value):
    monkeypatch.setattr(vector_cache, name, value)
    with VectorCache(path, scope=SCOPE) as cache, VectorCache(path, scope=SCOPE) as reader:
        cache.put("a", None, None, vectors_of(1), spans_of(), 2)
        assert reader.get("a", None, None) is not None


# Scope ------------------------------------------------------------------------------------------------------------------


def test_a_scope_depends_on_values_and_not_on_their_order():
    assert policy_scope("w", {"a": 1, "b": None}) == policy_scope("w", {"b": None, "a": 1})
    scopes = {
        policy_scope(*facts) for facts in (("w", {"a": 1}), ("w", {"a": 2}), ("v", {"a": 1}), ("w", {"a": 1.5}), ("w", {}))
    }
    assert len(scopes) == 5


def test_a_scope_stays_what_it_is():
    # sha256 of {"model":"w","policy":{"pool":"mean","window_s":10.0}}: another one would lose every cache of the users.
    expected = "85f8c38de60539cc"
    assert policy_scope("w", {"window_s": 10.0, "pool": "mean"})[:16] == expected


# Files that cannot be used ----------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to have a header\n" * 100)
    with pytest.raises(EmbeddingError, match="notes.txt: is no cache, or a damaged one") as error:
        VectorCache(tmp_path / "notes.txt", scope=SCOPE)
    one_line(error)


def test_a_database_of_another_program_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "mail.db") as connection:
        connection.execute("CREATE TABLE mail (text TEXT)")
    connection.close()
    with pytest.raises(EmbeddingError, match="mail.db: is a database of another program"):
        VectorCache(tmp_path / "mail.db", scope=SCOPE)


def test_another_format_is_refused(filled):
    with sqlite3.connect(filled) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(EmbeddingError, match="is a cache of format 99, expected 1"):
        VectorCache(filled, scope=SCOPE)


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_truncated_file_is_refused_when_it_is_met(filled, share):
    content = filled.read_bytes()
    filled.write_bytes(content[: int(len(content) * share) // 4096 * 4096 or 100])
    with pytest.raises(EmbeddingError, match="cache.db: is no cache, or a damaged one") as error:  # noqa: PT012
        with VectorCache(filled, scope=SCOPE) as cache:
            for number in range(50):
                cache.get(f"{number:032x}", None, None)
    one_line(error)


def test_bytes_that_were_changed_are_found(filled):
    content = filled.read_bytes()
    place = content.index(vectors_of(7).tobytes())
    filled.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with VectorCache(filled, scope=SCOPE) as cache:
        assert cache.get(f"{6:032x}", None, None) is not None
        with pytest.raises(EmbeddingError, match=f"the vectors of content {7:032x} are damaged; delete the file"):
            cache.get(f"{7:032x}", None, None)


def test_a_file_that_somebody_holds_is_named(filled):
    holder = sqlite3.connect(filled, isolation_level=None)
    with VectorCache(filled, scope=SCOPE, wait_s=0.05) as cache:
        holder.execute("BEGIN IMMEDIATE")
        cache.put("a", None, None, vectors_of(1), spans_of(), 2)
        with pytest.raises(RunDirError, match="cache.db: the cache is locked by another process") as error:
            cache.flush()
        one_line(error)
        assert cache.get(f"{1:032x}", None, None) is not None  # reading goes on
        with pytest.raises(RunDirError, match="is locked"):
            VectorCache(filled, scope=SCOPE, wait_s=0.05)
        holder.execute("ROLLBACK")
        cache.flush()  # nothing was lost
    holder.close()
    with VectorCache(filled, scope=SCOPE) as cache:
        assert cache.get("a", None, None) is not None


@pytest.mark.parametrize(
    ("pragma", "message"),
    [("query_only = 1", "cannot be written; allow it"), ("max_page_count = 1", "the disk is full; make room")],
)
def test_a_file_that_cannot_be_written_is_named(path, pragma, message):
    cache = VectorCache(path, scope=SCOPE)
    cache._connection.execute(f"PRAGMA {pragma}")
    cache.put("a", None, None, vectors_of(1, count=4000), spans_of(4000), 2)
    with pytest.raises(RunDirError, match=f"cache.db: the cache cannot be written.*{message.rpartition('; ')[2]}") as error:
        cache.close()
    assert message in one_line(error)


def test_a_place_where_no_file_can_be_is_named(tmp_path):
    with pytest.raises(RunDirError, match=f"{tmp_path.name}: the cache cannot be opened"):
        VectorCache(tmp_path, scope=SCOPE)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunDirError, match="the cache cannot be kept there"):
        VectorCache(tmp_path / "file" / "cache.db", scope=SCOPE)


def test_a_cache_of_another_thread_is_a_mistake_that_is_not_hidden(filled):
    cache = VectorCache(filled, scope=SCOPE)
    cache.close()
    with pytest.raises(sqlite3.ProgrammingError):
        cache.get("a", None, None)


# Several processes ------------------------------------------------------------------------------------------------------

WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np
    from clapkit.steps.vector_cache import VectorCache

    path, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    cache = VectorCache(path, scope="s")
    for number in range(first, first + count):
        vectors = np.random.default_rng(number).normal(size=(2, 8)).astype(np.float32)
        cache.put(f"{number:032x}", None, None, vectors, [(0.0, 1.0), (1.0, 2.0)], 2)
        if number % 20 == 19:
            cache.flush()
            print(number, flush=True)
    cache.close()
    """
)


def start_writer(path: Path, first: int, count: int) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(clapkit.__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_fill_one_file_at_once(tmp_path):
    path = tmp_path / "cache.db"
    writers = [start_writer(path, first, 200) for first in (0, 150, 400)]  # the first two share some keys
    assert [writer.wait(timeout=600) for writer in writers] == [0, 0, 0]
    for writer in writers:
        writer.stdout.close()
    with VectorCache(path, scope="s") as cache:
        for number in (*range(350), *range(400, 600)):
            np.testing.assert_array_equal(cache.get(f"{number:032x}", None, None)[0], vectors_of(number))


def test_a_writer_that_is_killed_leaves_what_it_had_written(tmp_path):
    path = tmp_path / "cache.db"
    writer = start_writer(path, 0, 10**7)
    written = int([writer.stdout.readline() for _ in range(5)][-1])
    writer.send_signal(signal.SIGKILL)
    written = max([written, *map(int, writer.stdout.read().split())])
    assert writer.wait(timeout=600) == -signal.SIGKILL
    writer.stdout.close()
    with VectorCache(path, scope="s") as cache:
        for number in range(written + 1):
            np.testing.assert_array_equal(cache.get(f"{number:032x}", None, None)[0], vectors_of(number))
        cache.put("new", None, None, vectors_of(1), spans_of(), 2)
        cache.flush()
        assert cache._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
