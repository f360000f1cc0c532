import pytest

from clapkit.data.recipes._class_names import VERSION, Names, class_name, spell


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("sea_waves", "sea waves"),
        ("Walk,_footsteps", "Walk, footsteps"),
        ("Bathtub_(filling_or_washing)", "Bathtub (filling or washing)"),
        ("Hi-hat", "Hi-hat"),
        ("cafe/restaurant", "cafe/restaurant"),
        ("__air__conditioner ", "air conditioner"),
        ("dog  bark", "dog bark"),
    ],
)
def test_underscores_become_blanks_and_everything_else_stays(raw: str, words: str) -> None:
    assert class_name(raw) == words


def test_the_table_of_a_corpus_goes_before_the_rule() -> None:
    assert class_name("gun_shot", {"gun_shot": "gunshot"}) == "gunshot"
    assert class_name("car_horn", {"gun_shot": "gunshot"}) == "car horn"


def test_the_rule_changes_nothing_when_applied_twice() -> None:
    once = class_name("Dishes_and_pots__and_pans")
    assert class_name(once) == once == "Dishes and pots and pans"


@pytest.mark.parametrize(("names", "spelled"), [("words", "gunshot"), ("blanks", "gun shot"), ("raw", "gun_shot")])
def test_the_user_chooses_the_spelling(names: Names, spelled: str) -> None:
    assert spell("gun_shot", names, {"gun_shot": "gunshot"}) == spelled


def test_results_can_name_the_version_of_the_tables() -> None:
    assert VERSION.isdecimal()
