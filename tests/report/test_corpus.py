import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from clapkit.report.corpus import (
    MAX_CARDS,
    MAX_CARDS_PER_CHECK,
    MAX_GROUPS,
    MAX_MEMBERS,
    MAX_REJECTIONS,
    WorstCase,
    corpus_page,
)

EVIL = '<script>alert("x")</script>&'
LONG = "n" * 251 + ".wav"
SECTIONS = ["warnings", "checks", "coverage", "splits", "copies", "contents", "facts", "rejected", "worst"]


class Nesting(HTMLParser):
    """Fails on tags that are not closed in order, and collects what could load something and where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]
        self.anchors += [value or "" for key, value in attrs if key == "id"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_report(**changes: Any) -> dict[str, Any]:
    report = {
        "name": "toy",
        "recipe": "folder",
        "check": "decode",
        "num_clips": 4,
        "num_captions": 8,
        "hours": 0.5,
        "sample_rates": {"44100": 3, "8000": 1},
        "channels": {"1": 4},
        "languages": {"en": 7, "fr": 1},
        "labels": {"dog": 3, "rain": 1},
        "formats": {"WAV PCM_16": 4},
        "splits": {"train": {"num_clips": 3, "hours": 0.4}, "": {"num_clips": 1, "hours": 0.1}},
        "durations_s": {"min": 1.0, "mean": 2.34567, "median": 2.0, "max": 5.0},
        "captions": {"num_distinct": 1234, "num_shared": 2, "num_shared_across_splits": 0, "words": {"mean": 7.5}},
        "duplicates": {"num_groups": 0, "num_groups_across_splits": 0, "groups": []},
        "near_duplicates": None,
        "overlaps": [],
        "coverage": None,
        "facts": {"captions": "v2"},
        "warnings": [],
        "fingerprint": "ab" * 32,
    }
    return report | changes


def make_check(num_items: int | None = 0, *, rejects: bool = False, items: list[str] | None = None) -> dict[str, Any]:
    listed = [f"item {number}" for number in range(min(num_items or 0, 100))] if items is None else items
    return {"num_items": num_items, "items": listed, "about": "what it is", "effect": "rejects" if rejects else "flags"}


def make_rejections(num_items: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"item": f"lost {n:03d}", "reason": "why", "kind": "bad", "check": None} | changes for n in range(num_items)]


def make_case(check: str = "clipped", *, item: str = "toy/1", **changes: Any) -> WorstCase:
    given: dict[str, Any] = {
        "detail": "too loud",
        "caption": "A dog.",
        "waveform": np.zeros(800, np.float32),
        "sample_rate": 8000,
    }
    return WorstCase(check=check, item=item, **(given | changes))


def make_page(
    report: Mapping[str, Any] | None = None,
    *,
    checks: Mapping[str, Mapping[str, Any]] | None = None,
    rejections: list[dict[str, Any]] | None = None,
    worst: list[WorstCase] | None = None,
) -> str:
    return corpus_page(
        make_report() if report is None else report,
        checks={"clipped": make_check()} if checks is None else checks,
        rejections=rejections or [],
        worst=worst or [],
    )


def full_page(text: str) -> str:
    """A page in which everything that may come from outside is the text."""
    groups = {"num_groups": 1, "num_groups_across_splits": 1, "groups": [[text, text]]}
    overlap = {"run": text, "num_clips": 1, "splits": {text: 1}, "pairs": [{"id": text, "other": text, "reason": text}]}
    report = make_report(
        name=text,
        recipe=text,
        check=text,
        fingerprint=text,
        languages={text: 1},
        labels={text: 1},
        formats={text: 1},
        channels={text: 1},
        splits={text: {"num_clips": 1, "hours": 1.0}},
        duplicates=groups,
        near_duplicates=groups,
        overlaps=[overlap],
        coverage={text: {"official": 2, "listed": 2, "found": 1, "missing": 1}},
        facts={text: {text: [text]}},
        warnings=[text],
    )
    checks = {text: {"num_items": 2, "items": [text, text], "about": text, "effect": "flags", "threshold": text}}
    rejections = [{"item": text, "reason": text, "kind": "bad", "check": text, "split": text}]
    return make_page(
        report, checks=checks, rejections=rejections, worst=[make_case(text, item=text, detail=text, caption=text)]
    )


def section(html: str, anchor: str) -> str:
    return html.split(f'<section id="{anchor}">')[1].split("</section>")[0]


def plain(html: str) -> str:
    text = re.sub(r"<[^>]+>", " ", html.split("</style>")[-1])
    return re.sub(r" ([.,;:)])", r"\1", re.sub(r"\s+", " ", text)).strip()


def verdict(html: str) -> str:
    return plain(re.findall(r'<p class="verdict [a-z]+">.*?</p>', html, flags=re.DOTALL)[0])


def level(html: str) -> str:
    (found,) = re.findall(r'<p class="verdict ([a-z]+)">', html)
    return found


# The whole page


def test_everything_that_comes_from_outside_is_escaped() -> None:
    html = full_page(EVIL)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 25
    assert ' onerror="' not in full_page('" onerror="x')


def test_the_page_is_well_formed_loads_nothing_and_its_links_lead_somewhere() -> None:
    page = Nesting()
    page.feed(full_page("text"))
    assert page.open == []
    assert page.anchors == SECTIONS
    assert not {"script", "link", "iframe", "object"} & set(page.seen)
    links = [source for source in page.sources if not source.startswith("data:image/png;base64,")]
    assert {link.removeprefix("#") for link in links} == set(SECTIONS)
    assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize("text", ["name\udcff.wav", "a\x00b", "gpj.\u202eexe", "two\nlines"])
def test_odd_names_can_be_written_and_turn_nothing(text: str) -> None:
    body = full_page(text).split("</style>")[1]
    assert body.encode("utf-8")
    assert text not in body


def test_long_names_are_cut_and_whole_when_pointed_at() -> None:
    html = section(make_page(rejections=[{"item": LONG, "reason": "x" * 5000}]), "rejected")
    assert f'title="{LONG}"' in html
    assert "n.wav</bdi>" in html  # the end of a name tells more than its middle
    assert max(map(len, plain(html).split())) < 221


def test_equal_input_gives_an_equal_page() -> None:
    assert full_page("text") == full_page("text")


def test_a_report_of_nothing_is_a_page() -> None:
    html = corpus_page({}, checks={}, rejections=[], worst=[])
    assert verdict(html) == "0 of 0 clips are usable."
    assert level(html) == "bad"
    assert plain(section(html, "checks")) == "Checks Not looked at."
    assert [anchor for anchor in SECTIONS if f'id="{anchor}"' in html] == ["checks", "copies"]


def test_a_report_in_which_all_is_none_is_a_page() -> None:
    nothing = dict.fromkeys(make_report())
    assert [a for a in SECTIONS if f'id="{a}"' in make_page(nothing)] == ["checks", "copies"]


def test_dark_colours_are_for_the_screen_only() -> None:
    assert "@media screen and (prefers-color-scheme: dark)" in make_page()


def test_the_fingerprint_is_shown_by_its_beginning() -> None:
    html = make_page()
    assert f'<code><bdi title="{"ab" * 32}">{"ab" * 6}…</bdi></code>' in html


# The verdict


def test_a_good_corpus_is_green_and_said_to_be_good() -> None:
    html = make_page(make_report(num_clips=2000))
    assert verdict(html) == "All 2,000 clips are usable; no check found anything to look at."
    assert level(html) == "good"


def test_without_checks_nothing_is_said_about_them() -> None:
    assert verdict(make_page(checks={})) == "All 4 clips are usable."


def test_one_clip_is_one_clip() -> None:
    assert verdict(make_page(make_report(num_clips=1), checks={})) == "1 of 1 clip is usable."


def test_the_verdict_counts_what_is_lost_by_its_kind() -> None:
    rejections = make_rejections(12) + make_rejections(3, kind="missing") + make_rejections(1, kind="excluded")
    html = make_page(make_report(num_clips=1985), checks={}, rejections=rejections)
    # 1,985 + 12 + 3: what the user did not want is not counted among all clips.
    assert verdict(html) == "1,985 of 2,000 clips are usable; 12 are rejected, 3 are missing, 1 is left out on request."
    assert level(html) == "look"


def test_what_the_user_left_out_is_no_fault() -> None:
    assert level(make_page(rejections=make_rejections(3, kind="excluded"))) == "good"


def test_an_empty_caption_is_no_lost_clip() -> None:
    rejections = [{"item": "toy/1 caption 2", "reason": "empty", "kind": "bad", "check": "empty_caption"}]
    html = make_page(checks={}, rejections=rejections)
    assert verdict(html) == "All 4 clips are usable; 1 empty caption is dropped."
    assert level(html) == "look"
    named_alike = [{"item": "toy/1 caption 2", "reason": "cut off", "kind": "bad", "check": "truncated"}]
    assert "4 of 5 clips" in verdict(make_page(checks={}, rejections=named_alike))


def test_what_needs_a_look_is_named_and_leads_to_its_section() -> None:
    checks = {"truncated": make_check(9, rejects=True), "not_finite": make_check(1240), "silent": make_check(0)}
    html = make_page(checks=checks)
    # What is rejected is settled.
    assert verdict(html) == "All 4 clips are usable; 1 thing needs a look: not finite (1,240)."
    assert '<a href="#checks"><bdi>not finite</bdi> (1,240)</a>' in html
    assert level(html) == "look"


def test_leaks_come_first_and_are_red() -> None:
    groups = {"num_groups": 5, "num_groups_across_splits": 2, "groups": []}
    overlaps = [{"run": "other", "num_clips": 7, "splits": {}, "pairs": []}, {"run": "none", "num_clips": 0}]
    report = make_report(duplicates=groups, overlaps=overlaps, warnings=["x", "y"])
    html = make_page(report, checks={"clipped": make_check(1)})
    found = "copies across splits (2), overlap with other (7), groups of copies (3), clipped (1), 1 more"
    assert verdict(html) == f"All 4 clips are usable; 5 things need a look: {found}."
    assert level(html) == "bad"


def test_copies_that_a_check_found_too_are_named_once() -> None:
    report = make_report(duplicates={"num_groups": 2, "num_groups_across_splits": 0}, near_duplicates=None)
    html = make_page(report, checks={"duplicate": make_check(3), "near_duplicate": make_check(1)})
    # Without groups in the report, the check is all that there is to name.
    assert "2 things need a look: groups of copies (2), near duplicate (1)." in verdict(html)


@pytest.mark.parametrize(
    ("changes", "colour"),
    [
        ({"duplicates": {"num_groups": 1, "num_groups_across_splits": 0}}, "look"),
        ({"duplicates": {"num_groups": 1, "num_groups_across_splits": 1}}, "bad"),
        ({"near_duplicates": {"num_groups": 1, "num_groups_across_splits": 1}}, "bad"),
        ({"overlaps": [{"run": "r", "num_clips": 1}]}, "bad"),
        ({"warnings": ["swapped"]}, "look"),
        ({"num_clips": 0}, "bad"),
    ],
)
def test_the_colour_of_the_verdict(changes: dict[str, Any], colour: str) -> None:
    assert level(make_page(make_report(**changes))) == colour


def test_a_check_of_headers_says_what_it_did_not_see() -> None:
    assert "Only the headers of the files were read" in verdict(make_page(make_report(check="header")))
    assert "headers" not in verdict(make_page())


def test_key_numbers_have_units() -> None:
    text = plain(make_page().split('<div class="tiles">')[1].split("<nav>")[0])
    assert text == "4 clips 8 captions 30.0 min of audio 2 s median clip 2 labels 44.1 kHz most of 2 rates"


@pytest.mark.parametrize(("hours", "read"), [(1234.5, "1,234.5 h"), (0.5, "30.0 min"), (0.01, "36.0 s"), (0.0, "0.0 s")])
def test_lengths_are_read_in_their_unit(hours: float, read: str) -> None:
    assert f"<b>{read}</b>of audio" in make_page(make_report(hours=hours))


# Sections


def test_warnings_are_shown_in_full() -> None:
    sentence = "The splits look swapped. " * 10
    assert plain(section(make_page(make_report(warnings=[sentence])), "warnings")) == f"Warnings {sentence.strip()}"


def test_findings_come_first_and_what_is_fine_is_calm() -> None:
    checks = {"fine": make_check(0), "unknown": make_check(None), "kept": make_check(2), "gone": make_check(1, rejects=True)}
    html = section(make_page(checks=checks), "checks")
    assert re.findall(r"<bdi>(fine|unknown|kept|gone)</bdi>", html) == ["kept", "gone", "unknown", "fine"]
    assert re.findall(r'<tr class="calm"><th scope="row"><bdi>(\w+)</bdi>', html) == ["unknown", "fine"]
    text = plain(html)
    assert "kept 2 kept, look what it is item 0 … all 2 item 0 item 1" in text
    assert "gone 1 left out what it is item 0 unknown not looked at what it is fine 0 what it is" in text


def test_the_threshold_of_a_check_is_said() -> None:
    html = make_page(checks={"clipped": make_check(0) | {"threshold": "> 0.01"}})
    assert "clipped 0 what it is (&gt; 0.01)" in plain(section(html, "checks")).replace("( ", "(")


def test_of_many_items_the_number_of_those_listed_is_said() -> None:
    html = section(make_page(checks={"clipped": make_check(240)}), "checks")
    assert "item 0 … the first 100 of 240" in plain(html)
    assert html.count("<li>") == 100


def test_coverage_is_a_share_of_the_complete_corpus() -> None:
    coverage = {
        "train": {"official": 200, "listed": 160, "found": 50, "missing": 110},
        "test": {"official": None, "listed": 80, "found": 60, "missing": 20},
        "none": {"official": None, "listed": 0, "found": 0, "missing": 0},
    }
    html = section(make_page(make_report(coverage=coverage)), "coverage")
    text = plain(html)
    assert "train 200 160 50 110 25.0 %" in text  # 50 / 200
    assert "test – 80 60 20 75.0 %" in text  # 60 / 80
    assert "none – 0 0 0 –" in text
    assert re.findall(r"width:([\d.]+)%", html) == ["25.00", "75.00"]


def test_a_bar_is_never_wider_than_its_room() -> None:
    coverage = {"train": {"official": 10, "listed": 20, "found": 20, "missing": 0}}
    html = section(make_page(make_report(coverage=coverage)), "coverage")
    assert "width:100.00%" in html
    assert "200.0 %" in html  # more than official: the number says so


def test_splits_have_shares_of_all_clips() -> None:
    text = plain(section(make_page(), "splits"))
    assert "train 3 24.0 min 75.0 %" in text
    assert "no split 1 6.0 min 25.0 %" in text


def test_copies_within_a_split_are_said_and_across_splits_warned_of() -> None:
    within = {"num_groups": 2, "num_groups_across_splits": 0, "groups": [["a", "b"], ["c", "d", "e"]]}
    html = section(make_page(make_report(duplicates=within)), "copies")
    assert "2 groups, of these across splits: 0. a = b c = d = e" in plain(html)
    assert 'class="warning"' not in html
    across = within | {"num_groups_across_splits": 1}
    assert '<p class="warning">2 groups' in section(make_page(make_report(duplicates=across)), "copies")


def test_no_copies_and_not_looked_at_are_two_things() -> None:
    assert "Copies of one file None. Clips that sound alike Not looked at." in plain(section(make_page(), "copies"))


def test_many_groups_and_many_members_are_cut() -> None:
    groups = [[f"g{group}m{member}" for member in range(MAX_MEMBERS + 3)] for group in range(MAX_GROUPS + 1)]
    found = {"num_groups": len(groups), "num_groups_across_splits": 0, "groups": groups}
    text = plain(section(make_page(make_report(duplicates=found)), "copies"))
    assert text.count("… 3 more") == MAX_GROUPS
    assert f"g{MAX_GROUPS}m0" not in text
    assert f"g0m{MAX_MEMBERS - 1} … 3 more" in text


def test_overlaps_name_the_run_its_splits_and_pairs() -> None:
    pair = {"id": "toy/1", "other": "big/7", "reason": "same recording"}
    overlaps = [{"run": "big", "num_clips": 2, "splits": {"train": 2}, "pairs": [pair]}, {"run": "small", "num_clips": 0}]
    text = plain(section(make_page(make_report(overlaps=overlaps)), "copies"))
    assert "big: 2 clips of this corpus are in it (there in train 2). toy/1 = big/7 same recording small: none." in text


def test_captions_shared_across_splits_are_counted() -> None:
    captions = {"num_shared_across_splits": 1}
    text = plain(section(make_page(make_report(captions=captions)), "copies"))
    assert "1 caption stands in more than one split." in text


def test_bars_are_ordered_by_number_and_in_proportion() -> None:
    html = section(make_page(make_report(labels={"rain": 1, "dog": 4, "cat": 1})), "contents").split("<h3>Labels</h3>")[1]
    rows = re.findall(r"<bdi>(\w+)</bdi></span><span class=\"bar\"><i style=\"width:([\d.]+)%", html)
    assert rows == [("dog", "100.00"), ("cat", "25.00"), ("rain", "25.00")]


def test_labels_beyond_thirty_are_counted() -> None:
    labels = {f"label {number}": number for number in range(1, 35)}
    text = plain(section(make_page(make_report(labels=labels)), "contents"))
    # The four smallest: 4 + 3 + 2 + 1.
    assert "label 5 5 and 4 more with 4 or fewer each, 10 in all" in text


def test_contents_show_rates_and_numbers_that_can_be_read() -> None:
    text = plain(section(make_page(), "contents"))
    assert "44,100 Hz 3 8,000 Hz 1" in text
    assert "mean 2.346" in text
    assert "number of distinct 1,234" in text
    assert "words mean 7.5" in text


def test_facts_keep_texts_that_only_look_like_numbers() -> None:
    text = plain(section(make_page(make_report(facts={"version": "2.1.0", "nan": "nan", "none": None})), "facts"))
    assert text == "Facts version 2.1.0 nan nan none –"


def test_bad_items_are_listed_before_missing_ones_and_all_are_counted() -> None:
    rejections = make_rejections(60, kind="missing") + make_rejections(2, check="not_finite", item="bad item")
    html = section(make_page(rejections=rejections), "rejected")
    text = plain(html)
    assert "62 items: 2 rejected, 60 missing; the first 50 are shown, all are in rejected.jsonl." in text
    assert "outcome check why bad item rejected not finite why bad item" in text
    assert html.count('<th scope="row">') == MAX_REJECTIONS


def test_a_rejection_that_says_no_kind_is_bad() -> None:
    text = plain(section(make_page(rejections=[{"item": "x", "reason": "why"}]), "rejected"))
    assert "1 item: 1 rejected." in text


# Worst cases


def test_a_card_shows_what_is_wrong_and_how_it_looks() -> None:
    html = section(make_page(checks={"clipped": make_check(31)}, worst=[make_case()]), "worst")
    assert 'src="data:image/png;base64,' in html
    assert plain(html).endswith("clipped 1 of 31 too loud A dog. toy/1 0.1 s, 8 kHz")


def test_cards_are_grouped_by_check_and_cut() -> None:
    names = [f"check {number}" for number in range(12)]
    worst = [make_case(name, waveform=None, sample_rate=0) for _ in range(MAX_CARDS_PER_CHECK + 1) for name in names]
    html = section(make_page(checks={}, worst=worst), "worst")
    assert html.count("<article>") == MAX_CARDS
    headings = re.findall(r"<h3><bdi>(check \d+)</bdi>", html)
    assert headings == names[: MAX_CARDS // MAX_CARDS_PER_CHECK]
    assert plain(html).count("6 of 7") == 10


@pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.full(9, np.nan, np.float32), np.ones(1, np.float32)])
def test_any_waveform_has_a_picture(waveform: np.ndarray) -> None:
    assert "<img " in section(make_page(worst=[make_case(waveform=waveform)]), "worst")


def test_what_cannot_be_decoded_says_so_and_needs_no_caption() -> None:
    html = section(make_page(worst=[make_case(waveform=None, sample_rate=0, caption="")]), "worst")
    assert "<img" not in html
    assert plain(html).endswith("cannot be decoded too loud toy/1")
