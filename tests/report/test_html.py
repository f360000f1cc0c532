import base64
import re

import pytest

from clapkit.report._html import breakable, document, flat, one_line, outside, picture_source, table, words


def test_sections_without_content_are_left_out_and_the_others_are_linked() -> None:
    html = document("T", header="<p>h</p>", sections=[("a", "First", "<p>1</p>\n"), ("b", "Second", "")])
    assert '<a href="#a">First</a>' in html
    assert '<section id="a">' in html
    assert "Second" not in html


def test_the_title_and_headings_are_escaped_and_own_rules_come_last() -> None:
    html = document("<i>&", header="", sections=[("a", "<b>", "x")], style=".mine { color: red; }\n")
    assert html.count("&lt;i&gt;&amp;") == 2
    assert "<h2>&lt;b&gt;</h2>" in html
    assert ".mine { color: red; }\n</style>" in html


def test_a_page_may_load_nothing() -> None:
    html = document("T", header="", sections=[])
    assert re.search(r"content=\"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'\"", html)


def test_a_table_has_an_empty_corner() -> None:
    assert "<thead><tr><td></td><th>a</th></tr></thead>" in table(["<th>a</th>"], [])


def test_a_picture_lies_in_its_address() -> None:
    assert base64.b64decode(picture_source(b"\x89PNG").removeprefix("data:image/png;base64,")) == b"\x89PNG"


def test_nested_values_become_pairs() -> None:
    assert flat({"a": {"b": 1, "c": [1, "x"]}, "d": None}) == [("a b", "1"), ("a c", "1, x"), ("d", "None")]


@pytest.mark.parametrize(("key", "read"), [("num_clips", "number of clips"), ("window_s", "window (s)"), ("plain", "plain")])
def test_keys_are_read_as_words(key: str, read: str) -> None:
    assert words(key) == read


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" a\n\tb ", "a b"),
        ("a\x00b\x1b", "a\ufffdb\ufffd"),
        ("gpj.\u202eexe", "gpj.\ufffdexe"),  # would read as exe.jpg
        ("name\udcff.wav", "name\ufffd.wav"),  # as Python reads a file name that is not UTF-8
        ("صوت 音 é 🐕", "صوت 音 é 🐕"),
    ],
)
def test_text_is_one_line_that_can_be_written(text: str, line: str) -> None:
    assert one_line(text) == line
    assert one_line(text).encode("utf-8")


def test_text_from_outside_is_escaped_and_isolated() -> None:
    assert outside('<a "b">', limit=20) == "<bdi>&lt;a &quot;b&quot;&gt;</bdi>"


def test_text_is_cut_at_its_end_and_shown_in_full_when_pointed_at() -> None:
    assert outside("abcdefghij", limit=10) == "<bdi>abcdefghij</bdi>"
    assert outside("abcdefghijk", limit=10) == '<bdi title="abcdefghijk">abcdefghi…</bdi>'


def test_paths_are_cut_in_the_middle() -> None:
    # A third of ten characters, the mark, and the six that are left.
    assert outside("abcdefghijk", limit=10, keep_end=True) == '<bdi title="abcdefghijk">abc…fghijk</bdi>'


def test_what_is_cut_out_of_a_tooltip_does_not_tear_an_entity() -> None:
    html = outside("<" * 5000, limit=10)
    assert html.count("&lt;") == 599 + 9
    assert html.replace("&lt;", "") == '<bdi title="…">…</bdi>'


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("svr_seed-0", ["svr_", "seed-", "0"]),
        ("run…_warmup", ["run…_", "warmup"]),
        ("a/b=1", ["a/", "b=", "1"]),
        ("<a&b>_c", ["&lt;a&amp;b&gt;_", "c"]),
        ("0.0005, plain", ["0.0005, plain"]),
        ("__", ["__"]),
        ("", []),
    ],
)
def test_names_break_behind_what_joins_their_words(name: str, parts: list[str]) -> None:
    assert breakable(name) == "<wbr>".join(parts)
    assert outside(name, limit=20, is_name=True) == f"<bdi>{'<wbr>'.join(parts)}</bdi>"


def test_a_name_that_was_cut_is_whole_in_its_attribute() -> None:
    assert outside("a_b_c_d_e_f", limit=4, is_name=True) == '<bdi title="a_b_c_d_e_f">a_<wbr>b…</bdi>'
