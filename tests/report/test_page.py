import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from clapkit.report.curves import PALETTE
from clapkit.report.page import Picture, report_page

EVIL = '<script>alert("x")</script>&'
VOID = {"meta", "img"}


class Nesting(HTMLParser):
    """Fails on tags that are not closed in order, and collects what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_run(**changes: Any) -> dict[str, Any]:
    retrieval = {
        "metrics": {"t2a_R@1": 0.125, "t2a_MedR": 5.0},
        "intervals": {"t2a_R@1": [0.0625, 0.195]},
        "warnings": [],
    }
    protocol = {"data": "toy", "split": "test", "num_clips": 4, "id_hash": "ab" * 32, "audio_policy": {"window_s": 5.0}}
    return {"model_fingerprint": "cd" * 32, "protocol": protocol, "tasks": {"retrieval": retrieval}} | changes


def make_page(names: list[str], runs: list[dict[str, Any]], **changes: Any) -> str:
    given: dict[str, Any] = {
        "comparison": None,
        "bars": None,
        "curves": [],
        "without_log": [],
        "configurations": {},
        "without_configuration": [],
    }
    return report_page(names, runs, **(given | changes))


def make_comparison(tests: dict[str, Any]) -> dict[str, Any]:
    return {"baseline": "x", "metrics": ["t2a_R@1", "t2a_MeanR"], "rows": [{"tests": {}}, {"tests": tests}]}


def make_test(difference: float, p: float, interval: list[float] | None = None) -> dict[str, Any]:
    return {"difference": difference, "interval": interval, "two_sided_p": p, "num_clips": 4}


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("</style>")[1]))


def test_everything_that_comes_from_outside_is_escaped() -> None:
    run = make_run(protocol={"data": EVIL, "split": EVIL, EVIL: EVIL})
    run["tasks"] = {EVIL: {"metrics": {EVIL: 0.5}, "intervals": {}, "warnings": [EVIL], "protocol": {"prompts": [EVIL]}}}
    html = make_page(
        [EVIL, EVIL],
        [run, run],
        comparison=make_comparison({"t2a_R@1": make_test(0.1, 0.01)}),
        bars=Picture(EVIL, b"png", EVIL),
        curves=[Picture('" onerror="x', b"png", EVIL)],
        without_log=[EVIL],
        configurations={EVIL: [EVIL, None]},
        without_configuration=[EVIL],
    )
    assert "<script" not in html
    assert ' onerror="' not in html
    assert html.count("&lt;script&gt;") > 10


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = make_page(
        ["a", "b"], [make_run(), make_run()], curves=[Picture("Loss", b"png")], configurations={"--lr": ["1", "2"]}
    )
    page = Nesting()
    page.feed(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.seen)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in page.sources)
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_pictures_are_embedded_byte_by_byte() -> None:
    png = bytes(range(256))
    html = make_page(["a"], [make_run()], curves=[Picture("Loss", png, "a note")])
    (data,) = re.findall(r'base64,([^"]+)"', html)
    assert base64.b64decode(data) == png
    assert 'alt="Loss"' in html
    assert "<figcaption>a note</figcaption>" in html


def test_metrics_are_in_percent_ranks_as_they_are_and_intervals_below() -> None:
    text = plain(make_page(["a"], [make_run()]))
    assert "t2a_R@1 12.5 6.2 – 19.5" in text  # 6.25 % rounds to even
    assert "t2a_MedR 5.0" in text


def test_a_metric_that_a_run_lacks_is_a_dash() -> None:
    other = make_run(tasks={"retrieval": {"metrics": {"t2a_MedR": 2.0}, "intervals": {}, "warnings": []}})
    assert "t2a_R@1 12.5 6.2 – 19.5 –" in plain(make_page(["a", "b"], [make_run(), other]))


def test_equal_protocols_are_shown_once_and_different_ones_warn() -> None:
    same = plain(make_page(["a", "b"], [make_run(), make_run()]))
    assert same.count("number of clips 4") == 1
    assert "audio policy window (s) 5.0" in same
    assert "differ" not in same.split("Configuration")[1].split("Training options")[0]
    other = make_run()
    other["protocol"] = other["protocol"] | {"num_clips": 5}
    different = plain(make_page(["a", "b"], [make_run(), other]))
    assert "The protocols differ in number of clips;" in different
    assert "number of clips 4 5" in different


def test_models_of_other_fingerprints_do_not_make_protocols_differ() -> None:
    html = make_page(["a", "b"], [make_run(), make_run(model_fingerprint="ef" * 32)])
    assert "protocols differ" not in html
    assert '<code title="' + "ef" * 32 + '">' + "ef" * 6 + "</code>" in html


def test_a_warning_of_several_runs_is_said_once_with_their_names() -> None:
    run = make_run()
    run["tasks"]["retrieval"]["warnings"] = ["many ties"]
    text = plain(make_page(["a", "b"], [run, run]))
    assert "a, b: many ties" in text.replace(" ,", ",")
    assert text.count("many ties") == 1


def test_differences_have_a_sign_and_small_p_is_bold() -> None:
    tests = {"t2a_R@1": make_test(-0.075, 0.0313, [-0.1, 0.0001]), "t2a_MeanR": make_test(1.5, 0.2)}
    html = make_page(["a", "b"], [make_run(), make_run()], comparison=make_comparison(tests))
    assert "<b>-7.5</b>" in html
    assert "-10.0 to 0.0, p = 0.0313" in html  # 0.01 percentage points are 0.0, without a sign
    assert "t2a_MeanR +1.5 p = 0.2000" in plain(html)  # ranks are not multiplied


@pytest.mark.parametrize(("p", "bold"), [(0.0499, True), (0.05, False)])
def test_the_bound_of_bold(p: float, bold: bool) -> None:
    html = make_page(["a", "b"], [make_run(), make_run()], comparison=make_comparison({"t2a_R@1": make_test(0.1, p)}))
    assert ("<b>+10.0</b>" in html) == bold


def test_runs_that_cannot_be_tested_are_said() -> None:
    text = plain(make_page(["a", "b"], [make_run(), make_run()], comparison=make_comparison({})))
    assert "No run was evaluated on the same clips and captions as a" in text


def test_a_single_run_has_no_comparison_and_shows_its_defaults_beside() -> None:
    html = make_page(["a"], [make_run()], configurations={"--loss": ["infonce", "svr"]})
    assert 'id="comparison"' not in html
    text = plain(html)
    assert "Training options that are not at their default. default a --loss infonce svr" in text


def test_what_was_not_found_is_named() -> None:
    text = plain(make_page(["a", "b"], [make_run(), make_run()], without_log=["b"], without_configuration=["a", "b"]))
    assert "Without curves, because no metrics.jsonl of a train run lies beside the model: b." in text
    assert "Not known, because no run.json of a train run lies beside the model: a, b." in text
    assert "No training option differs" not in text


def test_a_run_has_the_colour_of_its_curves() -> None:
    html = make_page(["a", "b"], [make_run(), make_run()])
    assert f'background:{PALETTE[1]}"></span>b' in html
