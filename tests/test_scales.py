import pytest

from clapkit.scales import better_end, decimals, is_fraction


@pytest.mark.parametrize(
    "name",
    [
        "t2a_R@1",
        "a2t_mAP@10",
        "zero_shot_accuracy",
        "robustness_noise_t2a_R@1",
        "robustness_mean_accuracy",
        "modality_separability",
        "composition_order_text",
    ],
)
def test_shares_are_fractions_with_a_decimal_of_percent(name):
    assert is_fraction(name)
    assert decimals(name) == 1


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("t2a_MedR", 1),
        ("a2t_MeanR", 1),
        ("alignment", 3),
        ("uniformity_audio", 3),
        ("modality_gap", 3),
        ("positive_cosine", 3),
        ("robustness_mean_cosine", 3),
        ("margin_t2a", 3),
        ("tolerance", 3),
        ("hubness_a2t", 3),
        ("effective_rank_text", 1),
        ("participation_ratio_audio", 1),
        ("cost_parameters_millions", 1),
        ("cost_peak_memory_mib", 1),
        ("multilingual_mean_rank_variance", 3),
        ("mrv", 3),
        ("multilingual_caption_distance", 3),
    ],
)
def test_quantities_with_a_scale_of_their_own_are_no_fractions(name, digits):
    assert not is_fraction(name)
    assert decimals(name) == digits


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("t2a_R@1", "higher"),
        ("a2t_MeanR", "lower"),
        ("zero_shot_accuracy", "higher"),
        ("positive_cosine", "higher"),
        ("alignment", "lower"),
        ("multilingual_mean_rank_variance", "lower"),
        ("mrv", "lower"),
        ("modality_gap", None),
        ("negative_cosine", None),
        ("word_order_t2a_R@1_drop", None),
        ("cost_peak_memory_mib", None),
        ("effective_rank_text", None),
    ],
)
def test_the_name_says_which_end_is_good(name, end):
    assert better_end(name) == end
