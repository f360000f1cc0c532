import base64
import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from clapkit.report.canvas import PALETTE
from clapkit.report.cards import Media
from clapkit.report.numbers import Scales
from clapkit.report.page import Pictures, Training, report_page
from clapkit.report.pieces import Picture

EVIL = '<script>alert("x")</script>&'
VOID = {"meta", "img", "br", "wbr"}
AT = re.compile(r'data-value="([^"]*)" data-at="([^"]*)">([^<]*)<')


class Nesting(HTMLParser):
    """Fails on tags that are not closed in order, and collects what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_run(name: str = EVIL, *, value: float = 0.125, marks: bool = True) -> dict[str, Any]:
    """A run with something of everything, all names hostile."""
    retrieval = {
        "metrics": {"t2a_R@1": value, "t2a_MedR": 5.0},
        "intervals": {"t2a_R@1": [value / 2, 2 * value]},
        "chance": {"t2a_R@1": 0.01},
        "counts": {"t2a_num_queries": 8},
        "warnings": [name],
        "variants": {name: {"metrics": {"t2a_R@1": 0.375}, "intervals": {}}},
    }
    zero_shot = {
        "metrics": {"zero_shot_accuracy": 0.75},
        "intervals": {},
        "warnings": [],
        "protocol": {"prompts": [name]},
        "confusion": {"classes": [name, "b"], "counts": [[3, 1], [0, 4]]},
        "per_class": [
            {"class": name, "num_clips": 4, "recall": 0.75, "precision": 1.0, "average_precision": None}
            | {"confused_with": name, "num_confused": 1}
        ],
        "prompt_sensitivity": {
            "zero_shot_accuracy": {"ensemble": 0.75, "mean": 0.625, "std": 0.125, "templates": {name: 0.5, "{}": 0.75}}
            | {"default": {"template": "{}", "value": 0.75}}
        },
    }
    languages = {"metrics": {}, "intervals": {}, "warnings": [], "per_language": {name: {"metrics": {"t2a_R@1": 0.25}}}}
    point = {"change": name, "severity": 6.0, "unit": name, "metrics": {"t2a_R@1": 0.0625}, "drop": {"t2a_R@1": 0.0625}}
    robustness = {"metrics": {}, "intervals": {}, "warnings": [], "clean": {"t2a_R@1": 0.125}, "robustness": [point]}
    hub = {"k": 2, "num_queries": 8, "num_items": 4, "never_retrieved_share": 0.25, "largest": [{"id": name, "count": 7.0}]}
    hit = {"clip": 0, "caption": name, "rank": 1, "score": 0.5, "kind": "wrong"}
    query = {"clip": 0, "rank": 3, "num_items": 4, "score": 0.25, "margin": 0.25, "hits": [hit]}
    kinds = {"t2a_worst": name, "t2a_confusing": name, "a2t_worst": None, "a2t_confusing": None}
    evidence = {
        "clips": {"0": {"id": name, "captions": [name], "labels": [name], "duration_s": 1.0}},
        "queries": {kind: [query | {"caption": caption}] for kind, caption in kinds.items()},
        "mistakes": [{"clip": 0, "target": name, "predicted": name, "rank": 2, "margin": 0.125}],
        "notes": [name],
    }
    return {
        "run": name,
        "model_fingerprint": "cd" * 32,
        "protocol": {"data": name, "split": name, "num_clips": 4, name: name},
        "marks": [{"kind": "seen_clips", "text": name}] if marks else [],
        "tasks": {
            "retrieval": retrieval,
            "zero-shot": zero_shot,
            "multilingual": languages,
            "robustness": robustness,
            "geometry": {"metrics": {}, "intervals": {}, "warnings": [], "hubness": {"t2a": hub}},
        },
        "evidence": evidence,
    }


def make_comparison(names: list[str], *, p: float = 0.0313, verdict: str = "better") -> dict[str, Any]:
    test = {"difference": -0.075, "interval": [-0.1, 0.0001], "two_sided_p": p, "num_clips": 4, "seeds": None}
    rows = [{"label": name, "tests": {"t2a_R@1": test} if n else {}, "minimum_detectable": {"t2a_R@1": 0.0625}} for n, name in
            enumerate(names)]  # fmt: skip
    spread = {"t2a_R@1": {"deviation": 0.015, "worst": 0.1, "best": 0.15, "test_error": 0.02, "seed_error": 0.01}}
    method = {"runs": ["x"], "metrics": {"t2a_R@1": 0.125}, "intervals": {"t2a_R@1": [0.1, 0.2]}, "spread": spread, "marks": []}
    judged = {"verdicts": {"t2a_R@1": {"verdict": verdict, "reason": EVIL}}, "tests": {"t2a_R@1": test}}
    return {
        "baseline": names[0],
        "baseline_method": EVIL,
        "headline": ["t2a_R@1"],
        "metrics": ["t2a_R@1"],
        "rule": EVIL,
        "warnings": [EVIL],
        "rows": rows,
        "methods": [method | {"method": EVIL, "tests": {}, "verdicts": {}}, method | {"method": "b"} | judged],
        "leaders": {"t2a_R@1": {"best": "b", "real": True}},
    }


def make_page(results: dict[str, Any], scales: Scales, **given: Any) -> str:
    names = [run["run"] for run in results["runs"]]
    empty: dict[str, Any] = {"pictures": Pictures(), "training": Training(), "media": Media({}, {})}
    return report_page(names, results, scales=scales, **(empty | given))


def everything(scales: Scales) -> tuple[dict[str, Any], str]:
    """Results, and a page of two runs with everything."""
    picture = Picture(EVIL, b"png", EVIL)
    results = {"runs": [make_run(), make_run(value=0.25)], "comparison": make_comparison([EVIL, EVIL])}
    page = make_page(
        results,
        scales,
        pictures=Pictures(picture, [picture], {"retrieval": picture}, picture, picture, [picture], picture),
        training=Training([EVIL], {EVIL: [EVIL, None]}, [EVIL]),
        media=Media({0: b"png"}, {0: b"mp3"}, EVIL.replace("<", "")),
    )
    return results, page


def plain(html: str) -> str:
    text = re.sub(r"<wbr>|</?bdi[^>]*>", "", html.split("</style>")[1])
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def test_everything_that_comes_from_outside_is_escaped(scales: Scales) -> None:
    _, html = everything(scales)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 50


def test_the_page_is_well_formed_and_loads_nothing(scales: Scales) -> None:
    _, html = everything(scales)
    page = Nesting()
    page.feed(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.seen)
    assert all(source.startswith(("#", "data:image/png;base64,", "data:audio/mpeg;base64,")) for source in page.sources)
    assert {source[1:] for source in page.sources if source.startswith("#")} <= set(page.ids)  # links lead somewhere
    assert len(set(page.ids)) == len(page.ids)
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_every_number_is_that_of_the_results(scales: Scales) -> None:
    results, html = everything(scales)
    results = json.loads(json.dumps(results))
    found = AT.findall(html)
    assert len(found) > 90
    for value, place, shown in found:
        target: Any = results
        for part in unescape(place).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            target = target[int(key)] if isinstance(target, list) else target[key]
        assert float(value) == target, place
        scale = min((1.0, 100.0), key=lambda factor: abs(float(shown.replace(",", "")) - factor * target))
        assert float(shown.replace(",", "")) == pytest.approx(scale * target, abs=0.0500001), place


def test_marks_come_first_and_big(scales: Scales) -> None:
    html = make_page({"runs": [make_run("a")]}, scales)
    assert html.index('class="mark"') < html.index('class="verdict"') < html.index('class="tiles"')
    assert "⚠ The model has seen these clips. a." in plain(html)
    assert 'class="mark"' not in make_page({"runs": [make_run("a", marks=False)]}, scales)


def test_one_run_is_judged_by_chance(scales: Scales) -> None:
    text = plain(make_page({"runs": [make_run("a")]}, scales))
    assert "t2a_R@1 12.5 % (95 % interval 6.2 to 25.0 %), better than guessing ( 1.0 %)" in text
    low = make_run("a")
    low["tasks"]["retrieval"]["chance"]["t2a_R@1"] = 0.2
    assert "not shown to differ from guessing" in plain(make_page({"runs": [low]}, scales))


def test_a_real_difference_is_said_and_others_are_not_claimed(scales: Scales) -> None:
    runs = [make_run("a"), make_run("b", value=0.25)]
    real = plain(make_page({"runs": runs, "comparison": make_comparison(["a", "b"])}, scales))
    assert "The highest t2a_R@1 of 2 runs is 25.0 %, by b; b is better than" in real
    assert "of 1 differences tested 1 is real" in real
    none = plain(make_page({"runs": runs, "comparison": make_comparison(["a", "b"], verdict="no difference shown")}, scales))
    assert "is shown in t2a_R@1." in none
    assert "no difference shown, measured -7.5 points" in none


@pytest.mark.parametrize(("p", "bold"), [(0.0499, True), (0.05, False)])
def test_a_small_p_of_a_single_run_is_bold(scales: Scales, p: float, bold: bool) -> None:
    html = make_page({"runs": [make_run("a"), make_run("b")], "comparison": make_comparison(["a", "b"], p=p)}, scales)
    assert bool(re.search(r"<b><span [^>]*>-7.5</span></b>", html)) == bold
    assert f"-10.0 to 0.0 , p = {p:.4f}" in plain(html)  # 0.01 percentage points are 0.0, without a sign


def test_runs_that_cannot_be_tested_are_said(scales: Scales) -> None:
    comparison = make_comparison(["a", "b"])
    comparison["rows"][1]["tests"] = {}
    text = plain(make_page({"runs": [make_run("a"), make_run("b")], "comparison": comparison}, scales))
    assert "No run was evaluated on the same clips and captions as a, so nothing is tested" in text


def test_seeds_have_both_errors(scales: Scales) -> None:
    text = plain(make_page({"runs": [make_run("a"), make_run("b")], "comparison": make_comparison(["a", "b"])}, scales))
    assert "error from clips error from seeds" in text
    assert "12.5 1.5 10.0 15.0 2.0 1.0" in text  # mean, deviation, worst, best, and the two errors


def test_the_smallest_difference_stands_beside_the_numbers(scales: Scales) -> None:
    text = plain(make_page({"runs": [make_run("a"), make_run("b")], "comparison": make_comparison(["a", "b"])}, scales))
    assert "smallest difference shown 6.2" in text
    run = make_run("a") | {"minimum_detectable": {"t2a_R@1": 0.03}}
    assert "smallest difference shown 3.0 points" in plain(make_page({"runs": [run]}, scales))


def test_a_metric_that_a_run_lacks_is_a_dash(scales: Scales) -> None:
    other = make_run("b")
    del other["tasks"]["retrieval"]["metrics"]["t2a_R@1"]
    del other["tasks"]["retrieval"]["intervals"]["t2a_R@1"]
    assert "t2a_R@1 12.5 6.2 to 25.0 – 1.0" in plain(make_page({"runs": [make_run("a"), other]}, scales))


def test_equal_protocols_are_shown_once_and_different_ones_warn(scales: Scales) -> None:
    same = plain(make_page({"runs": [make_run("a"), make_run("a")]}, scales))
    assert "protocols differ" not in same
    assert same.count("number of clips 4") == 1
    other = make_run("a")
    other["protocol"]["num_clips"] = 5
    other["model_fingerprint"] = "ef" * 32  # another model is what is compared
    different = plain(make_page({"runs": [make_run("a"), other]}, scales))
    assert "The protocols differ in number of clips;" in different
    assert "number of clips 4 5" in different


def test_a_warning_of_all_runs_is_said_once(scales: Scales) -> None:
    text = plain(make_page({"runs": [make_run("many ties"), make_run("many ties")]}, scales))
    assert "all runs: many ties" in text


def test_variants_are_folded(scales: Scales) -> None:
    html = make_page({"runs": [make_run("merged")]}, scales)
    folded = re.search(r"<details><summary>retrieval: <bdi>merged</bdi></summary>(.*?)</details>", html, re.DOTALL)
    assert folded is not None
    assert "37.5" in folded[1]


def test_a_sound_lies_in_the_page_once_and_is_linked_from_elsewhere(scales: Scales) -> None:
    html = make_page({"runs": [make_run("a")]}, scales, media=Media({0: b"png"}, {0: b"mp3"}))
    assert html.count("<audio") == 1
    assert base64.b64encode(b"mp3").decode() in html
    assert html.count('href="#sound-0"') > 3


def test_clips_without_picture_and_sound_are_told(scales: Scales) -> None:
    text = plain(make_page({"runs": [make_run("a")]}, scales, media=Media({}, {})))
    assert "no picture: cannot be decoded" in text
    assert "sound left out" in text


def test_a_clip_found_no_more_often_than_its_share_is_no_hub(scales: Scales) -> None:
    run = make_run("a")
    run["tasks"]["geometry"]["hubness"]["t2a"]["largest"][0]["count"] = 4.0  # 8 lists of 2 among 4 clips: 4 for each
    assert 'id="hubs"' not in make_page({"runs": [run]}, scales)
    assert 'id="hubs"' in make_page({"runs": [make_run("a")]}, scales)


def test_sections_without_data_are_left_out(scales: Scales) -> None:
    run = {"run": "a", "model_fingerprint": "x", "protocol": {"data": "d", "split": "s"}, "tasks": {}}
    html = make_page({"runs": [run]}, scales, training=Training(without_configuration=["a"]))
    assert re.findall(r'<section id="(\w+)"', html) == ["evaluated", "configuration"]


def test_long_names_are_cut(scales: Scales) -> None:
    html = make_page({"runs": [make_run("x" * 300, marks=False)]}, scales)
    assert "x" * 61 not in re.search(r"<h1>(.*?)</h1>", html)[1]  # type: ignore[index]


def test_names_of_runs_break_between_their_words(scales: Scales) -> None:
    page = make_page({"runs": [make_run("svr_seed-0"), make_run("b")]}, scales)
    assert "<h1>Evaluation of svr_<wbr>seed-<wbr>0, b</h1>" in page
    assert "<bdi>svr_<wbr>seed-<wbr>0</bdi>" in page
    assert "<title>Evaluation of svr_seed-0, b</title>" in page


def test_many_runs_are_counted_in_the_title(scales: Scales) -> None:
    assert "<h1>Evaluation of 5 runs</h1>" in make_page({"runs": [make_run("a")] * 5}, scales)
    assert "<h1>Evaluation of a, a</h1>" in make_page({"runs": [make_run("a")] * 2}, scales)


def test_what_was_not_found_is_named(scales: Scales) -> None:
    results = {"runs": [make_run("a"), make_run("b")]}
    text = plain(make_page(results, scales, training=Training(without_log=["b"], without_configuration=["a", "b"])))
    assert "Without curves, because no metrics.jsonl of a train run lies beside the model: b." in text
    assert "Not known, because no run.json of a train run lies beside the model: a, b." in text
    assert "No training option differs" not in text


def test_a_single_run_shows_its_defaults_beside(scales: Scales) -> None:
    html = make_page({"runs": [make_run("a")]}, scales, training=Training(configurations={"--loss": ["infonce", "svr"]}))
    assert "Training options that are not at their default. default a --loss infonce svr" in plain(html)


def test_a_run_has_the_colour_of_its_curves(scales: Scales) -> None:
    html = make_page({"runs": [make_run("a"), make_run("b")]}, scales)
    assert f'background:{PALETTE[1]}"></span><bdi>b</bdi>' in html


def test_pictures_are_embedded_byte_by_byte(scales: Scales) -> None:
    png = bytes(range(256))
    html = make_page({"runs": [make_run("a")]}, scales, pictures=Pictures(map=Picture("Map", png, "a note")))
    (data,) = re.findall(r'alt="Map" src="data:image/png;base64,([^"]+)"', html)
    assert base64.b64decode(data) == png
    assert "<figcaption>a note</figcaption>" in html
