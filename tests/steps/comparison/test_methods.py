import pytest

from clapkit.steps.comparison.methods import Method, methods_of


def grouped(make_outcome, *runs):
    outcomes = [make_outcome(name, training=training) for name, training in runs]
    return methods_of(outcomes, [name for name, _ in runs])


def test_runs_that_differ_in_seed_and_device_are_one_method(make_outcome, training):
    runs = [
        ("svr-s0", training(loss="svr", seed=0, device="cuda:0", name="svr-s0")),
        ("infonce", training(loss="infonce", seed=0)),
        ("svr-s1", training(loss="svr", seed=1, device="cuda:1", name="svr-s1", workers=3)),
    ]
    assert grouped(make_outcome, *runs) == [Method("svr", (0, 2), (0, 1)), Method("infonce", (1,), (0,))]


@pytest.mark.parametrize("other", [{"lr": 0.1}, {"data": "other"}, {"options": ["depth=3"]}, {"key_of_a_later_version": 1}])
def test_any_other_option_makes_another_method(make_outcome, training, other):
    assert len(grouped(make_outcome, ("a", training(seed=0)), ("b", training(seed=1, **other)))) == 2


def test_an_option_that_a_run_is_older_than_is_at_its_default(make_outcome, training):
    old = training(seed=1)
    del old["grad_checkpointing"]
    assert len(grouped(make_outcome, ("a", training(seed=0)), ("b", old))) == 1


def test_a_seed_counts_once(make_outcome, training):
    runs = [("a", training(seed=0)), ("b", training(seed=0)), ("c", training(seed=1))]
    assert [method.runs for method in grouped(make_outcome, *runs)] == [(0, 2), (1,)]


def test_models_of_unknown_training_stand_alone(make_outcome):
    assert grouped(make_outcome, ("a", None), ("b", None)) == [Method("a", (0,), (None,)), Method("b", (1,), (None,))]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("svr-s0", "svr-s1"), "svr"),
        (("svr_seed_1", "svr_seed_2"), "svr"),
        (("svr-s10", "svr-s11"), "svr"),
        (("lr0.1-s1", "lr0.1-s2"), "lr0.1"),
        (("clips0", "clips1"), "clips"),
        (("first", "second"), "first"),
    ],
)
def test_a_method_is_called_what_its_runs_have_in_common(make_outcome, training, names, expected):
    runs = [(name, training(seed=seed)) for seed, name in enumerate(names)]
    assert grouped(make_outcome, *runs)[0].name == expected


def test_methods_have_different_names(make_outcome, training):
    runs = [(f"svr-s{seed}", training(seed=seed)) for seed in (0, 1)]
    runs += [(f"svr-s{seed}", training(seed=seed, lr=0.1)) for seed in (2, 3)]
    assert [method.name for method in grouped(make_outcome, *runs)] == ["svr", "svr-s2"]
    assert [m.name for m in grouped(make_outcome, *runs[:2], ("svr", None))] == ["svr-s0", "svr"]
