from clapkit.data.findings import CHECKS, Finding
from clapkit.data.inspection import CLIPPED_SHARE, SILENT_RMS


def test_every_check_says_in_one_sentence_what_it_means_and_from_where_on_it_speaks() -> None:
    for name, check in CHECKS.items():
        assert name.replace("_", "").isalpha()
        assert name == name.lower()
        assert check.about.endswith(".")
        assert "\n" not in check.about
        assert check.threshold


def test_checks_that_reject_come_first() -> None:
    effects = [check.effect for check in CHECKS.values()]
    assert effects == ["rejects"] * effects.count("rejects") + ["flags"] * effects.count("flags")


def test_thresholds_are_those_that_are_measured_with() -> None:
    assert f"{SILENT_RMS:g}" in CHECKS["silent"].threshold
    assert f"{CLIPPED_SHARE:g}" in CHECKS["clipped"].threshold


def test_a_finding_is_mild_unless_it_says_more() -> None:
    assert Finding("silent", "a", "nothing").severity == 0.0
