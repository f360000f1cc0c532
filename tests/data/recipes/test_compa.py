from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

ORDER = """pair_caption,reversed_pair_caption,triplet_caption,pair_file,reversed_pair_file,triplet_file
A dog barks after a bell.,A bell rings after a dog.,A dog and a bell at once.,1.wav,1_rev.wav,1_trip.wav
"Rain, then thunder.","Thunder, then rain.",-,2.wav,1_rev.wav,-
"""
ATTRIBUTE = """pair_caption,reversed_pair_caption,pair_file,reversed_pair_file,pair_file.1,reversed_pair_file.1
A man speaks as a child cries.,A child speaks as a man cries.,Y-abc_DEF012.wav,1234567e890,1.wav,1_rev.wav
"""


def corpus(folder: Path, *, order: str = ORDER, attribute: str = ATTRIBUTE) -> Path:
    """Both tasks; the names of their files are the same."""
    for task, text, names in (
        ("order", order, ["1.wav", "1_rev.wav", "1_trip.wav", "2.wav"]),
        ("attribute", attribute, ["1.wav", "1_rev.wav"]),
    ):
        files = folder / f"CompA_{task}" / f"CompA_{task}_files"
        files.mkdir(parents=True)
        (files.parent / f"CompA_{task}_benchmark.csv").write_text(text)
        for name in names:
            (files / name).write_bytes(b"")
    return folder


def read_all(
    source: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Clip | Rejection], CorpusDescription]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    recipe = registry.build("recipe", "compa", options)
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    return items, recipe.describe([item for item in items if isinstance(item, Clip)])


def clips(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip]:
    return [item for item in read_all(source, options, **changes)[0] if isinstance(item, Clip)]


def test_a_row_becomes_two_clips_or_three(tmp_path: Path) -> None:
    found = {clip.id: clip.captions[0].text for clip in clips(corpus(tmp_path))}
    assert found == {
        "compa/order/1/pair": "A dog barks after a bell.",
        "compa/order/1/reversed": "A bell rings after a dog.",
        "compa/order/1/simultaneous": "A dog and a bell at once.",
        "compa/order/2/pair": "Rain, then thunder.",
        "compa/order/2/reversed": "Thunder, then rain.",
        "compa/attribute/1/pair": "A man speaks as a child cries.",
        "compa/attribute/1/reversed": "A child speaks as a man cries.",
    }


def test_a_clip_knows_its_place_in_the_benchmark(tmp_path: Path) -> None:
    assert clips(corpus(tmp_path))[2] == Clip(
        "compa/order/1/simultaneous",
        "CompA_order/CompA_order_files/1_trip.wav",
        captions=(Caption("A dog and a bell at once."),),
        split="test",
        source="compa/1_trip",
        extra={"compa": {"task": "order", "item": 1, "role": "simultaneous"}},
    )


def test_a_file_of_two_items_is_two_clips_of_one_source(tmp_path: Path) -> None:
    found = [clip for clip in clips(corpus(tmp_path)) if clip.audio == "CompA_order/CompA_order_files/1_rev.wav"]
    assert [clip.id for clip in found] == ["compa/order/1/reversed", "compa/order/2/reversed"]
    assert len({clip.source for clip in found}) == 1


def test_the_second_columns_of_attribute_name_the_files_and_the_first_the_videos(tmp_path: Path) -> None:
    found = clips(corpus(tmp_path), {"task": "attribute"})
    assert [(clip.audio.rpartition("/")[2], clip.source) for clip in found] == [
        ("1.wav", "youtube/-abc_DEF012"),
        ("1_rev.wav", "youtube/1234567e890"),
    ]


def test_a_list_by_itself_is_a_source(tmp_path: Path) -> None:
    corpus(tmp_path)
    folder = tmp_path / "CompA_order"
    found = clips(folder / "CompA_order_benchmark.csv")
    assert (len(found), found[0].audio) == (5, "CompA_order_files/1.wav")
    found = clips(folder / "CompA_order_benchmark.csv", audio_dir=folder / "CompA_order_files")
    assert (len(found), found[0].audio) == (5, "1.wav")


def test_the_task_is_chosen_by_name_or_by_the_user(tmp_path: Path) -> None:
    corpus(tmp_path)
    assert {clip.extra["compa"]["task"] for clip in clips(tmp_path, {"task": "order"})} == {"order"}
    other = tmp_path / "plain"
    (tmp_path / "CompA_order").rename(other)
    (other / "CompA_order_benchmark.csv").rename(other / "benchmark.csv")
    with pytest.raises(ManifestError, match="its name says neither order nor attribute; expected one; pass -O task=order"):
        read_all(other)
    assert clips(other, {"task": "order"})[0].id == "compa/order/1/pair"


def test_counts_of_the_whole_benchmark_are_known(tmp_path: Path) -> None:
    corpus(tmp_path)
    both = read_all(tmp_path)[1]
    # 400 items of two clips and 100 third ones; 200 items of two.
    assert both.official == {"test": 900 + 400}
    assert both.facts == {"items": {"order": 2, "attribute": 1}, "official_items": {"order": 400, "attribute": 200}}
    assert both.warnings == []
    assert read_all(tmp_path, {"task": "attribute"})[1].official == {"test": 400}


def test_missing_audio_is_counted_and_its_items_are_named(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "CompA_order" / "CompA_order_files" / "1_rev.wav").unlink()
    items, description = read_all(tmp_path, {"task": "order"})
    missing = [(item.item, item.kind, item.split) for item in items if isinstance(item, Rejection)]
    assert missing == [("compa/order/1/reversed", "missing", "test"), ("compa/order/2/reversed", "missing", "test")]
    assert description.warnings == ["Items that lack a clip or a caption: 2, first: order 1; they cannot be scored."]


@pytest.mark.parametrize(
    ("row", "item", "check"),
    [
        ("One.,,-,1.wav,2.wav,-", "compa/order/3/reversed", "empty_caption"),
        ("One.,-,-,1.wav,2.wav,-", "compa/order/3/reversed", "empty_caption"),
        ("One.,Two.,,1.wav,,", "compa/order/3/reversed", None),
        ("One.,Two.,-,1.wav,2.wav,1_trip.wav", "compa/order/3/simultaneous", "empty_caption"),
        ("One.,Two.,Three.,1.wav,2.wav,-", "compa/order/3/simultaneous", None),
        ("One.,Two.", "CompA_order_benchmark.csv line 4", None),
    ],
)
def test_an_item_that_is_not_whole_is_rejected_in_part(tmp_path: Path, row: str, item: str, check: str | None) -> None:
    items, description = read_all(corpus(tmp_path, order=f"{ORDER}{row}\n"), {"task": "order"})
    (found,) = [item for item in items if isinstance(item, Rejection)]
    assert (found.item, found.kind, found.check) == (item, "bad", check)
    assert "first: order 3" in description.warnings[0]


def test_what_is_no_compa_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is no CompA, no CSV file with pair_file, pair_caption"):
        read_all(tmp_path)
    corpus(tmp_path)
    with pytest.raises(ManifestError, match="no list of attribute found"):
        read_all(tmp_path / "CompA_order", {"task": "attribute"})
    (tmp_path / "CompA_order" / "another_order.csv").write_text(ORDER)
    with pytest.raises(ManifestError, match="is a second list of order beside"):
        read_all(tmp_path)
    with pytest.raises(ConfigError, match="task=both: expected one of auto, order, attribute"):
        read_all(tmp_path, {"task": "both"})
