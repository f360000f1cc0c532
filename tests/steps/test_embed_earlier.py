import dataclasses

import numpy as np
import pytest

from clapkit.index.table import EmbeddingTable
from clapkit.steps.embed_earlier import Changes, EarlierAudio, EarlierCaptions, caption_content, joined
from clapkit.types import Caption, Clip


def table(rows, *, modality="audio", dtype="float16"):
    """Rows (id, start, end, content), each a corner of the unit sphere."""
    ids, starts, ends, contents = zip(*rows, strict=True)
    empty = [()] * len(ids)
    return EmbeddingTable.build(
        modality,
        np.eye(len(ids), 8, dtype=np.float32),
        ids=ids,
        paths=ids,
        spans=list(zip(starts, ends, strict=True)),
        captions=empty,
        labels=empty,
        splits=[None] * len(ids),
        contents=contents,
        dtype=dtype,
    )


WHOLE = Clip("new name", "x.wav")


def test_whole_files_are_found_by_their_content_whatever_they_are_called():
    earlier = EarlierAudio(
        table([("a", 0, 3, "A"), ("b", 0, 5, "B")]), has_spans=False, num_windows=lambda length: round(length)
    )
    found = earlier.find(WHOLE, "B")
    assert found is not None
    assert (found.spans, found.num_windows, found.content) == ([(0.0, 5.0)], 5, "B")
    np.testing.assert_array_equal(found.vectors, np.eye(2, 8, dtype=np.float32)[1:])
    assert earlier.find(WHOLE, "C") is None
    assert earlier.contents == {"a": "A", "b": "B"}


def test_all_windows_of_a_clip_are_found():
    earlier = EarlierAudio(table([("a", 0, 1, "A"), ("a", 1, 2, "A"), ("b", 0, 1, "A")]), has_spans=True)
    found = earlier.find(dataclasses.replace(WHOLE, duration_s=2.0), "A")
    assert found is not None
    assert (found.spans, found.num_windows, found.vectors.shape) == ([(0.0, 1.0), (1.0, 2.0)], 2, (2, 8))


@pytest.mark.parametrize(
    ("span", "duration_s", "end_s"),
    [
        ((None, None), 9.0, 9.0),
        ((0.0, 3.0), 3.0, 3.0),
        ((None, 3.0002), 3.0, 3.0),  # within a sample
        ((3.0, None), 6.0, 9.0),
        ((3.0, None), 5.0, None),
        ((3.0, None), None, None),  # nobody knows where it ends
        ((0.0, 4.0), 4.0, None),
        ((0.0001, 3.0), 3.0, None),
    ],
)
def test_a_part_of_a_file_is_found_by_its_span(span, duration_s, end_s):
    earlier = EarlierAudio(table([("a", 0, 3, "A"), ("b", 3, 9, "A"), ("c", 0, 9, "A")]), has_spans=True)
    found = earlier.find(dataclasses.replace(WHOLE, start_s=span[0], end_s=span[1], duration_s=duration_s), "A")
    assert (found.spans[0][1] if found else None) == end_s


def test_rows_of_unknown_content_are_not_found():
    earlier = EarlierAudio(table([("a", 0, 3, None)]), has_spans=None)
    assert earlier.find(WHOLE, "A") is None
    assert earlier.contents == {"a": None}


def test_captions_are_found_by_words_and_language():
    contents = [caption_content(Caption("rain")), caption_content(Caption("Regen", "de")), caption_content(Caption("rain"))]
    earlier = EarlierCaptions(
        table([("a", None, None, contents[0]), ("a", None, None, contents[1]), ("b", None, None, contents[2])], modality="text")
    )
    assert earlier.find(caption_content(Caption("rain", "de"))) is None
    np.testing.assert_array_equal(earlier.find(contents[1]), np.eye(3, 8)[1])
    assert earlier.contents == {"a": joined(contents[:2]), "b": contents[2]}


def test_every_clip_of_both_tables_is_counted_once():
    changes = Changes({"a": "A", "b": "B", "c": "C", "d": "D", "e": None, "f": "F"})
    changes.note("a", "A", is_reused=True)
    changes.note("b", "X", is_reused=False)
    changes.note("c", "C", is_reused=False)  # the same file, another span
    changes.note("g", "D", is_reused=True)
    changes.note("h", "D", is_reused=True)  # of two copies, one is the name that is gone
    changes.note("e", "E", is_reused=False)
    counts = changes.counts()
    assert counts == {"kept": 1, "new": 1, "changed": 3, "renamed": 1, "gone": 1}
    assert counts["kept"] + counts["changed"] + counts["renamed"] + counts["gone"] == 6
    assert counts["kept"] + counts["changed"] + counts["renamed"] + counts["new"] == 6
