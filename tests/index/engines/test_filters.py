"""What an engine finds by a filter is what clapkit's own filter lets through."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clapkit.errors import ConfigError
from clapkit.index import engines
from clapkit.index.engines._filters import to_lance, to_milvus
from clapkit.index.layout import TableInfo
from clapkit.index.table import EmbeddingTable
from clapkit.index.where import Where
from clapkit.types import SilentReporter

from .conftest import expect_extra

# What a careless quotation would take for the end of a text, a wild card or an escape.
TEXTS = [
    "a",
    "b",
    "",
    "it's",
    '"q"',
    "a\\",
    "50%",
    "a_b",
    "é\n",
    "') or 1=1 --",
    '" or row >= 0 or id == "',
    "{x}",
    "$meta",
    "A",
]
NUMBERS = [0, 1, -1, 2.5, 1e300, -1e-7, True]
TEXT_COLUMNS = ["id", "caption", "split"]
LIST_COLUMNS = ["labels", "captions"]
NUMBER_COLUMNS = ["start_s", "end_s"]


def test_a_filter_is_sql_with_two_truth_values():
    where = Where("split == 'it\\'s' and not 'dog' in labels and 0 <= start_s < end_s or id not in ('a', 'b', path)")
    assert to_lance(where) == (
        "(((split is not null and split = 'it''s') and (not (labels is not null and array_has(labels, 'dog'))) and "
        "(start_s is not null and end_s is not null and 0.0 <= start_s and start_s < end_s)) or "
        "(id is not null and (not ((id IN ('a', 'b') or (path is not null and id = path))))))"
    )


def test_a_filter_is_an_expression_of_milvus_with_two_truth_values():
    where = Where("split == 'a\"\\\\' and 'dog' in labels and 'x' in path and start_s in (-1, 2)")
    assert to_milvus(where) == (
        '((split is not null and split == "a\\"\\\\") and (labels is not null and array_contains(labels, "dog")) and '
        '(path is not null and path like "%x%") and (start_s is not null and (start_s in [-1.0, 2.0])))'
    )


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("id == 1", "id == 1"),
        ("split == 'a' and start_s < 'b'", "start_s < 'b'"),
        ("labels == captions", "labels == captions"),
        ("labels == ['a']", "labels == ['a']"),
        ("labels in ('a', 'b')", "labels in ('a', 'b')"),
        ("1 < 2 < start_s", "1 < 2 < start_s"),
        ("id in ()", "id in ()"),
        ("id in ('a', 1)", "id in ('a', 1)"),
        ("id in ('a', ('b', path))", "id in ('a', ('b', path))"),
        ("'a' in start_s", "'a' in start_s"),
        ("1 in labels", "1 in labels"),
        ("id == id", "id == id"),
        ("start_s < 1e999", "start_s < 1e999"),
        ("start_s < 1" + "0" * 400, "start_s < 10"),
        ("id == '\\ud800'", "id == "),
        ("labels like '*a*'", "labels like '*a*'"),
    ],
)
@pytest.mark.parametrize("translate", [to_lance, to_milvus])
def test_what_an_engine_cannot_say_is_named(translate, expression, part):
    with pytest.raises(ConfigError, match="cannot be said in the language of") as caught:
        translate(Where(expression))
    assert part in str(caught.value).replace("\\\\", "\\").rpartition(": ")[2] or "ud800" in expression
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "expression", ["'50%' in path", "'a_b' in path", "'a\\\\b' in path", "id in path", "id in labels", "path like '*.wav'"]
)
def test_milvus_has_no_words_for_what_lance_has(expression):
    assert to_lance(Where(expression))
    with pytest.raises(ConfigError, match="cannot be said in the language of Milvus; rewrite it"):
        to_milvus(Where(expression))


@pytest.mark.parametrize("translate", [to_lance, to_milvus])
def test_deep_brackets_are_refused(translate):
    assert translate(Where("not " * 20 + "id == 'a'"))
    with pytest.raises(ConfigError, match="is nested deeper than 20 levels; simplify it"):
        translate(Where("not " * 21 + "id == 'a'"))


def _rows():
    rng = np.random.default_rng(0)

    def some(values):
        return None if rng.random() < 0.25 else values[rng.integers(len(values))]

    def several():
        return [TEXTS[i] for i in rng.integers(len(TEXTS), size=rng.integers(3))]

    return [
        {
            "id": TEXTS[rng.integers(len(TEXTS))],
            "span": (some([0.0, 1.0, -1.0, 2.5]), some([0.0, 1.0, 1e300])),
            "captions": several(),
            "labels": several(),
            "split": some(TEXTS),
        }
        for _ in range(80)
    ]


def _filled(kind, folder):
    expect_extra(kind)
    rows = _rows()
    vectors = np.tile(np.array([[1, 0, 0, 0]], dtype=np.float32), (len(rows), 1))
    table = EmbeddingTable.build(
        "audio",
        vectors,
        ids=[row["id"] for row in rows],
        paths=[str(number) for number in range(len(rows))],
        spans=[row["span"] for row in rows],
        captions=[row["captions"] for row in rows],
        labels=[row["labels"] for row in rows],
        splits=[row["split"] for row in rows],
    )
    info = TableInfo(4, "float32", {"audio": len(rows)}, "m", "f", id="t")
    engine = engines.parse(f"lance:{folder}" if kind == "lance" else f"milvus:{folder / 'x.db'}")
    engine.push(table, info, reporter=SilentReporter())
    return engine, table


@pytest.fixture(scope="module")
def lance(tmp_path_factory):
    engine, table = _filled("lance", tmp_path_factory.mktemp("lance"))
    yield engine, table
    engine.close()


@pytest.fixture(scope="module")
def milvus(tmp_path_factory):
    engine, table = _filled("milvus", tmp_path_factory.mktemp("milvus"))
    yield engine, table
    engine.close()


def comparisons():
    texts, numbers = st.sampled_from(TEXTS).map(repr), st.sampled_from(NUMBERS).map(repr)
    text_column, number_column = st.sampled_from(TEXT_COLUMNS), st.sampled_from(NUMBER_COLUMNS)
    order = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    membership = st.sampled_from(["in", "not in"])

    def joined(*parts):
        return st.tuples(*parts).map(" ".join)

    def several(*elements):
        return st.lists(st.one_of(*elements), min_size=1, max_size=3).map(lambda parts: f"({', '.join(parts)},)")

    return st.one_of(
        joined(text_column, order, texts),
        joined(texts, order, text_column),
        joined(number_column, order, numbers),
        joined(numbers, order, number_column, order, numbers),
        joined(st.just("start_s"), order, st.just("end_s")),
        joined(st.just("id"), order, st.just("caption")),
        joined(text_column, membership, several(texts, text_column)),
        joined(number_column, membership, several(numbers)),
        joined(texts, membership, st.sampled_from(TEXT_COLUMNS + LIST_COLUMNS)),
        joined(st.just("caption"), membership, st.sampled_from(["captions", "labels", "id"])),
        joined(
            text_column, st.sampled_from(["like", "not like"]), st.sampled_from(["'*a*'", "'?'", "'*é?'", "'*\\'*'", "'A'"])
        ),
    )


def expressions():
    return st.recursive(
        comparisons(),
        lambda inner: st.one_of(
            inner.map(lambda part: f"not ({part})"),
            st.tuples(inner, inner).map(lambda parts: f"({parts[0]}) and ({parts[1]})"),
            st.tuples(inner, inner).map(lambda parts: f"({parts[0]}) or ({parts[1]})"),
        ),
        max_leaves=4,
    )


def _check(filled, expression, translate):
    engine, table = filled
    where = Where(expression)
    try:
        translate(where)
    except ConfigError:
        assume(False)  # what is refused is tested above
    expected = set(np.flatnonzero(where.mask(table.columns(where.columns))).tolist())
    hits = engine.search(np.array([[1, 0, 0, 0]], dtype=np.float32), 80, where=expression)[0]
    assert {int(row["path"]) for _, row in hits} == expected


COMMON = dict(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
)


@settings(max_examples=40, **COMMON)
@given(expressions())
def test_lance_finds_what_the_filter_lets_through(lance, expression):
    _check(lance, expression, to_lance)


@settings(max_examples=40, **COMMON)
@given(expressions())
def test_milvus_finds_what_the_filter_lets_through(milvus, expression):
    _check(milvus, expression, to_milvus)
