import pytest

from clapkit.steps.comparison.verdict import judge


def made(difference=0.02, p=0.01, *, detectable=0.03, interval=None):
    seeds = None if interval is None else {"interval": interval, "num_runs": [3, 2]}
    return {"difference": difference, "p_holm": p, "minimum_detectable_difference": detectable, "seeds": seeds}


def test_one_run_of_each_does_not_cover_the_seed_and_says_so():
    verdict, reason = judge("t2a_R@1", made())
    assert verdict == "better"
    assert reason == "p = 0.0100 after Holm; one run of each, so the training seed is not covered"
    assert judge("t2a_R@1", made(-0.02))[0] == "worse"


def test_lower_ranks_are_better():
    assert judge("t2a_MeanR", made(-3.0))[0] == "better"
    assert judge("t2a_MeanR", made(3.0))[0] == "worse"


@pytest.mark.parametrize("p", [0.05, 0.9])
def test_p_of_five_percent_is_not_enough_and_the_power_is_told(p):
    verdict, reason = judge("t2a_R@1", made(p=p))
    assert verdict == "no difference shown"
    told = "a true difference of 3.00 points would be found in 80 % of such tests before the correction"
    assert reason == f"p = {p:.4f} after Holm; {told}"


def test_unknown_power_is_not_told():
    assert judge("t2a_R@1", made(p=1.0, detectable=None)) == ("no difference shown", "p = 1.0000 after Holm")


def test_seeds_must_leave_zero_out():
    verdict, reason = judge("t2a_R@1", made(interval=(0.001, 0.04)))
    assert verdict == "better"
    assert reason == "p = 0.0100 after Holm; with the seeds (3 and 2 runs) +0.10 points to +4.00 points"
    verdict, reason = judge("t2a_R@1", made(interval=(-0.001, 0.04)))
    assert verdict == "no difference shown"
    assert "with the seeds (3 and 2 runs) the interval -0.10 points to +4.00 points holds zero" in reason
    assert judge("t2a_R@1", made(interval=(0.0, 0.04)))[0] == "no difference shown"


def test_what_was_not_tested_is_not_claimed():
    verdict, reason = judge("zero_shot_mAP", None)
    assert verdict == "no difference shown"
    assert reason.startswith("not tested: ")
