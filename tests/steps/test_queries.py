import numpy as np
import pytest

from clapkit.config import RetrieveConfig
from clapkit.errors import ConfigError, EmbeddingError, NumericalError
from clapkit.steps import queries
from clapkit.steps.queries import Part, Query

DOG, RAIN, MUSIC = Part("text", "dog"), Part("text", "rain"), Part("text", "music")


@pytest.fixture
def vector_file(tmp_path):
    """Writes an array as ``.npy``."""

    def write(array):
        np.save(tmp_path / "q.npy", np.asarray(array))
        return tmp_path / "q.npy"

    return write


def read(*query, **options):
    return queries.read_queries(RetrieveConfig(query=query, **options))


# Reading ----------------------------------------------------------------------------------------------------------------


def test_words_lines_sounds_items_and_vectors_come_in_this_order(tmp_path, vector_file):
    (tmp_path / "q.txt").write_text("rain\n\n  wind ", encoding="utf-8")
    asked = read(
        " dog ", queries=tmp_path / "q.txt", audio=("a.wav",), like=("toy/bell",), vectors=vector_file([[1.0, 0.0], [0.0, 2.0]])
    )
    kinds = [(part.kind, part.value) for query in asked for part in query.plus]
    expected = [("text", "dog"), ("text", "rain"), ("text", "wind"), ("audio", "a.wav"), ("like", "toy/bell")]
    file = tmp_path / "q.npy"
    assert kinds == [*expected, ("vector", f"{file} row 0"), ("vector", f"{file} row 1")]
    assert all(query.minus == () for query in asked)


def test_combined_queries_are_one():
    (query,) = read("dog", "rain", audio=("a.wav",), combine=True)
    assert [part.value for part in query.plus] == ["dog", "rain", "a.wav"]
    assert query.name == "dog + rain + a.wav"
    assert query.words == "dog rain"


def test_every_query_has_what_is_subtracted():
    first, second = read("dog", "rain", minus=("music",), minus_audio=("hum.wav",))
    assert first.minus == second.minus == (MUSIC, Part("audio", "hum.wav"))
    assert second.name == "rain − music − hum.wav"
    assert second.words == "rain"


def test_a_mark_at_the_start_of_a_query_file_is_no_word(tmp_path):
    (tmp_path / "q.txt").write_bytes("\ufeffrain\r\nWört\r\n".encode())
    assert [query.name for query in read(queries=tmp_path / "q.txt")] == ["rain", "Wört"]


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ((), {}, "no query: give words, --audio, --like, --vectors or --queries, for example"),
        ((), {"minus": ("music",)}, "no query"),
        (("",), {}, "query: is empty, expected words"),
        (("dog",), {"minus": (" ",)}, "--minus: is empty, expected words"),
        (("caf\udce9",), {}, r"query 'caf\\udce9': holds signs that are no text; type it again"),
        (("dog",), {"minus": ("\ud83d",)}, r"query '\\ud83d': holds signs that are no text"),
        ((), {"like": ("caf\udce9.wav",)}, r"query 'caf\\udce9.wav': holds signs that are no text"),
    ],
)
def test_queries_that_say_nothing_are_refused(query, options, message):
    with pytest.raises(ConfigError, match=message):
        read(*query, **options)


def test_a_line_is_words_or_a_file():
    config = RetrieveConfig(minus=("music",), k=3)
    (words,) = queries.of_line("a dog @ home", config)
    (sound,) = queries.of_line("@ my sounds/door.wav", config)
    assert words == Query((Part("text", "a dog @ home"),), (MUSIC,))
    assert sound == Query((Part("audio", "my sounds/door.wav"),), (MUSIC,))


@pytest.mark.parametrize(("line", "message"), [("@ ", "@: names no file"), ("\udcff", "no text"), (" ", "query: is empty")])
def test_a_line_that_says_nothing_is_refused(line, message):
    with pytest.raises(ConfigError, match=message):
        queries.of_line(line, RetrieveConfig())


# Vectors ----------------------------------------------------------------------------------------------------------------


def test_vectors_are_scaled_to_unit_norm(vector_file):
    vectors = queries.read_vectors(vector_file(np.array([[3.0, 4.0], [0.0, -1e-3]])))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, -1]], atol=1e-7)


def test_one_vector_may_come_without_rows(vector_file):
    np.testing.assert_array_equal(queries.read_vectors(vector_file([0.0, 2.0])), [[0, 1]])


@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64"])
def test_any_kind_of_floats_is_read(vector_file, dtype):
    np.testing.assert_allclose(queries.read_vectors(vector_file(np.array([[3, 4]], dtype=dtype))), [[0.6, 0.8]], atol=1e-6)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.ones((2, 2), dtype=int), EmbeddingError, r"int64 of shape \[2, 2\], expected floats \[queries, width\]"),
        (np.ones((0, 2)), EmbeddingError, r"float64 of shape \[0, 2\]"),
        (np.ones((1, 2, 2)), EmbeddingError, r"float64 of shape \[1, 2, 2\]"),
        (np.float64(1), EmbeddingError, r"float64 of shape \[\]"),
        (np.array([[1.0, 0.0], [np.nan, 1.0]]), NumericalError, "q.npy: row 1 has norm nan, expected a direction"),
        (np.array([[0.0, 0.0]]), NumericalError, "q.npy: row 0 has norm 0, expected a direction"),
        (np.array([[np.inf, 0.0]]), NumericalError, "q.npy: row 0 has norm inf"),
    ],
)
def test_arrays_that_are_no_directions_are_refused(vector_file, array, error, message):
    with pytest.raises(error, match=message):
        queries.read_vectors(vector_file(array))


def test_files_that_are_no_vectors_are_refused(tmp_path, vector_file):
    path = vector_file(np.ones((4, 2)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(EmbeddingError, match=r"--vectors .*q.npy: cannot be read \(cut short: .*\); name a .npy file"):
        queries.read_vectors(path)
    np.savez(tmp_path / "q.npz", np.ones((1, 2)))
    with pytest.raises(EmbeddingError, match=r"--vectors .*q.npz: cannot be read"):
        queries.read_vectors(tmp_path / "q.npz")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    with pytest.raises(EmbeddingError, match=r"--vectors .*o.npy: cannot be read \(.*ickle"):
        queries.read_vectors(tmp_path / "o.npy")
    with pytest.raises(EmbeddingError, match=r"--vectors .*none.npy: no such file; name a .npy file"):
        queries.read_vectors(tmp_path / "none.npy")


# Arithmetic -------------------------------------------------------------------------------------------------------------

AXES = {part: row for part, row in zip((DOG, RAIN, MUSIC), np.eye(3, dtype=np.float32), strict=True)}


def composed(plus, minus=(), *, weight=0.5):
    return queries.compose([Query(plus, minus)], AXES, minus_weight=weight)


def test_a_query_of_one_part_is_its_vector():
    found = composed((DOG,))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[1, 0, 0]])


def test_a_query_of_two_parts_points_between_them():
    # mean (0.5, 0.5, 0), norm sqrt(0.5)
    np.testing.assert_allclose(composed((DOG, RAIN)), [[0.70710678, 0.70710678, 0]], atol=1e-7)


def test_a_share_of_the_mean_of_the_others_is_subtracted():
    # (0.5, 0.5, 0) - 0.5 * (0, 0, 1) = (0.5, 0.5, -0.5), norm sqrt(0.75)
    np.testing.assert_allclose(composed((DOG, RAIN), (MUSIC,)), [[0.57735027, 0.57735027, -0.57735027]], atol=1e-7)
    # (1, 0, 0) - 0.8 * (0, 0.5, 0.5) = (1, -0.4, -0.4), norm sqrt(1.32)
    np.testing.assert_allclose(composed((DOG,), (RAIN, MUSIC), weight=0.8), np.array([[1, -0.4, -0.4]]) / 1.32**0.5, atol=1e-7)


def test_nothing_is_subtracted_with_weight_zero():
    np.testing.assert_array_equal(composed((DOG,), (MUSIC,), weight=0.0), [[1, 0, 0]])


def test_a_query_less_half_of_itself_is_itself_and_less_itself_is_nothing():
    np.testing.assert_array_equal(composed((DOG,), (DOG,)), [[1, 0, 0]])
    with pytest.raises(NumericalError, match="^query: 'dog − dog' has norm 0, expected a direction; ask for something else$"):
        composed((DOG,), (DOG,), weight=1.0)


def test_queries_do_not_change_each_other():
    several = [Query((DOG,), (MUSIC,)), Query((RAIN, MUSIC)), Query((MUSIC,))]
    together = queries.compose(several, AXES, minus_weight=0.3)
    alone = [queries.compose([query], AXES, minus_weight=0.3)[0] for query in several]
    np.testing.assert_array_equal(together, alone)


def test_the_parts_of_queries_are_each_named_once():
    asked = [Query((DOG, RAIN), (MUSIC,)), Query((RAIN,), (MUSIC,)), Query((Part("audio", "dog"),))]
    assert queries.all_parts(asked) == [DOG, RAIN, MUSIC, Part("audio", "dog")]
