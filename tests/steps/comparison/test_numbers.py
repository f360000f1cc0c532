import pytest

from clapkit.steps.comparison.numbers import lower_is_better, show, show_difference, show_interval, unit


@pytest.mark.parametrize(
    ("metric", "kind", "text"),
    [
        ("t2a_R@1", "%", "44.16"),
        ("robustness_noise_0dB_a2t_R@1", "%", "44.16"),
        ("t2a_MedR", "rank", "0.4"),
        ("modality_gap", "", "0.442"),
    ],
)
def test_every_metric_is_shown_in_its_unit(metric, kind, text):
    assert unit(metric) == kind
    assert show(metric, 0.44161) == text


def test_differences_have_a_sign_and_fractions_points():
    assert show_difference("t2a_R@1", 0.0231) == "+2.31 points"
    assert show_difference("t2a_MeanR", -3.04) == "-3.0"
    assert show_interval("a2t_R@1", (0.1, 0.2)) == "[10.00, 20.00]"


def test_of_ranks_the_lower_is_better():
    assert lower_is_better("de_t2a_MedR")
    assert not lower_is_better("t2a_MRR")


@pytest.mark.parametrize("value", [0.0, -0.0, -1e-17, 4e-5])
def test_a_difference_that_is_shown_as_nothing_has_no_sign(value):
    assert show_difference("t2a_R@1", value) == "0.00 points"
