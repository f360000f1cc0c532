import pytest

from clapkit.report.numbers import Scales, count, known, pointer

AT = ("runs", 0, "a/b~c")


def test_a_number_says_what_it_is_and_where_it_stands(scales: Scales) -> None:
    html = scales.number("R@1", 0.12349, AT)
    assert html == '<span data-value="0.12349" data-at="/runs/0/a~1b~0c">12.3</span>'


def test_pointers_are_those_of_rfc_6901() -> None:
    assert pointer(("", "a/b", "m~n", 3)) == "//a~1b/m~0n/3"


def test_what_is_no_fraction_is_shown_as_it_is(scales: Scales) -> None:
    assert (scales.text("MedR", 5.0), scales.with_unit("MedR", 5.0)) == ("5.0", "5.0")
    assert (scales.text("R@1", 0.5), scales.with_unit("R@1", 0.5)) == ("50.0", "50.0 %")


@pytest.mark.parametrize(("value", "shown"), [(0.1, "+10.0"), (-0.075, "-7.5"), (0.0001, "0.0"), (-0.0001, "0.0")])
def test_differences_have_a_sign_unless_they_round_to_zero(scales: Scales, value: float, shown: str) -> None:
    assert scales.signed("R@1", value) == shown


def test_a_cell_has_its_interval_below(scales: Scales) -> None:
    html = scales.cell("R@1", 0.5, ("v",), [0.4, 0.6], ("i",))
    assert 'data-at="/v">50.0<' in html
    assert 'data-at="/i/0">40.0<' in html
    assert 'data-at="/i/1">60.0<' in html
    assert scales.cell("R@1", None, ("v",), None, ()) == '<td class="number">–</td>'


def test_attributes_cannot_be_left() -> None:
    assert '"><b>' not in known("x", '"><b>', ('"><b>',))
    assert count(12345, ("n",)) == '<span data-value="12345" data-at="/n">12,345</span>'
