import json
from pathlib import Path
from typing import Literal

import pytest

from clapkit.data.recipes._youtube import ClipName, candidate_names, is_youtube_id, parse_name, single_clip_ids

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/golden_metrics.json").read_text())
PAIRS = [
    pair for case in GOLDEN if case["kind"] == "filename_parse" for pair in case["pairs"] if "youtube_id" in pair["fields"]
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["name"])
def test_golden_names_are_split_where_their_fields_end(pair: dict) -> None:
    fields = pair["fields"]
    if "start_milliseconds" in fields:
        assert parse_name(pair["name"], unit="ms") == ClipName(fields["youtube_id"], fields["start_milliseconds"] / 1000)
    else:
        assert parse_name(pair["name"]) == ClipName(fields["youtube_id"], fields.get("start_seconds"))


def test_golden_holds_names_of_videos() -> None:
    assert len(PAIRS) == 5


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("YYQSuFyFm3Lc.wav", "s", ClipName("YQSuFyFm3Lc")),  # one Y is the prefix, the other begins the id
        ("YQSuFyFm3Lc.wav", "s", ClipName("YQSuFyFm3Lc")),  # 11 characters: no prefix
        ("YYQSuFyFm3Lc_5.flac", "s", ClipName("YQSuFyFm3Lc", 5.0)),
        ("abcdefg_123", "s", ClipName("abcdefg_123")),  # the id ends as if a start stood there
        ("Yabcdefg_123", "s", ClipName("abcdefg_123")),
        ("abcdefg_123_045", "s", ClipName("abcdefg_123", 45.0)),
        ("_zz9-YY0aa__0.mp3", "s", ClipName("_zz9-YY0aa_", 0.0)),
        ("a/b_1/-abc_DEF012_000268.mp4", "s", ClipName("-abc_DEF012", 268.0)),
        ("1234567e890", "s", ClipName("1234567e890")),
        ("b0RFKhbpFJA_500", "ms", ClipName("b0RFKhbpFJA", 0.5)),
        ("short.wav", "s", None),
        ("abcdefghijkl.wav", "s", None),  # 12 characters and no Y
        ("abcdefghijk_", "s", None),
        ("abcdefghijk_1.5x", "s", None),
        ("abcdefghijk_-30", "s", None),
        ("abcdefghijk_\u0663", "s", None),
        ("", "s", None),
    ],
)
def test_names_are_read_or_refused(name: str, unit: Literal["s", "ms"], expected: ClipName | None) -> None:
    assert parse_name(name, unit=unit) == expected


@pytest.mark.parametrize("text", ["abcdefghij", "abcdefghijkl", "abcdefghij.", "abcdefghij\u00e9", "abcdefghijk\n", ""])
def test_an_id_has_eleven_characters_of_its_alphabet(text: str) -> None:
    assert not is_youtube_id(text)
    assert is_youtube_id("-_aZ09-_aZ0")


def test_a_clip_may_go_by_these_names() -> None:
    assert candidate_names("-abc_DEF012", 30, 40, is_only_clip=True) == [
        "-abc_DEF012_30",
        "Y-abc_DEF012_30",
        "-abc_DEF012_000030",
        "Y-abc_DEF012_000030",
        "-abc_DEF012_30000",
        "Y-abc_DEF012_30000",
        "-abc_DEF012_30_40",
        "Y-abc_DEF012_30_40",
        "-abc_DEF012_30000_40000",
        "Y-abc_DEF012_30000_40000",
        "-abc_DEF012",
        "Y-abc_DEF012",
    ]


def test_a_name_without_start_belongs_to_no_clip_of_a_video_with_several() -> None:
    names = candidate_names("-abc_DEF012", 0.5, is_only_clip=False)
    assert names == ["-abc_DEF012_0.5", "Y-abc_DEF012_0.5", "-abc_DEF012_500", "Y-abc_DEF012_500"]
    assert single_clip_ids([("a", 0), ("b", 1), ("b", 2), ("c", 3), ("c", 3)]) == {"a", "c"}
