import pytest

from clapkit.errors import ConfigError, UnknownNameError
from clapkit.steps.comparison.protocol import clip_warnings, find_baseline, labels, protocol_differences, protocol_marks
from clapkit.steps.evaluation.result import Mark

HITS = [1, 0, 1]


def test_the_baseline_is_the_first_or_the_one_of_that_name(make_outcome):
    outcomes = [make_outcome("a"), make_outcome("b")]
    assert find_baseline(outcomes, None) == 0
    assert find_baseline(outcomes, "b") == 1


def test_an_unknown_baseline_lists_the_runs(make_outcome):
    with pytest.raises(UnknownNameError, match="unknown --baseline 'svrr': did you mean 'svr'\\? known: infonce, svr;"):
        find_baseline([make_outcome("svr"), make_outcome("infonce")], "svrr")


def test_of_runs_of_one_name_the_path_of_the_run_or_its_model_tells_which(make_outcome, tmp_path):
    outcomes = [make_outcome("svr"), make_outcome("svr")]
    for outcome, folder in zip(outcomes, ("one", "two"), strict=True):
        outcome.model = tmp_path / folder / "svr" / "model"
    assert labels(outcomes) == ["svr (1)", "svr (2)"]
    assert find_baseline(outcomes, str(tmp_path / "two/svr")) == 1
    assert find_baseline(outcomes, str(tmp_path / "two/svr/model")) == 1
    with pytest.raises(ConfigError, match="--baseline svr: is the name of 2 runs .*one/svr/model.*; give the path of one"):
        find_baseline(outcomes, "svr")


def test_differences_are_found_in_nested_protocols_and_in_those_of_common_tasks(make_outcome):
    first, second = make_outcome("a"), make_outcome("b", protocol={"precision": "bf16", "audio_policy": {"pool": "max"}})
    first.tasks["retrieval"].protocol["ties"] = "pessimistic"
    second.tasks["retrieval"].protocol["ties"] = "optimistic"
    second.tasks["other"] = make_outcome().tasks["retrieval"]
    second.tasks["other"].protocol["prompts"] = ["{}"]
    assert protocol_differences(second, first) == {
        "audio_policy.pool": ("max", "mean"),
        "audio_policy.sample_rate": (None, 8000),
        "precision": ("bf16", None),
        "retrieval.ties": ("optimistic", "pessimistic"),
    }
    assert protocol_differences(first, first) == {}


def test_marks_name_what_differs_in_a_few_words(make_outcome):
    outcomes = [
        make_outcome("a", protocol={"prompts": ["This is a sound of {}."] * 3}),
        make_outcome("b", protocol={"prompts": ["A sound of {}."] * 4, "id_hash": "b" * 64, "precision": "bf16"}),
        make_outcome("c", protocol={"prompts": ["This is a sound of {}."] * 3}),
    ]
    expected = "measured otherwise than a: other id_hash; precision bf16 instead of not stated; other prompts"
    assert protocol_marks(outcomes) == [[], [Mark("other_protocol", expected)], []]
    assert [len(marks) for marks in protocol_marks(outcomes, "b")] == [1, 0, 1]


def test_what_a_model_is_made_for_is_no_mark(make_outcome):
    outcomes = [make_outcome("a"), make_outcome("b", protocol={"audio_policy": {"sample_rate": 48000, "pool": "mean"}})]
    assert protocol_differences(outcomes[1], outcomes[0]) == {"audio_policy.sample_rate": (48000, 8000)}
    assert protocol_marks(outcomes) == [[], []]


def test_other_clips_are_one_sentence_that_says_how_many(make_outcome):
    base = make_outcome("a", a2t=HITS)
    other, partly = make_outcome("b", a2t=HITS, ids=["x", "y", "z"]), make_outcome("c", a2t=HITS, ids=["clip0", "y", "clip2"])
    assert clip_warnings([base, other, partly, make_outcome("d", a2t=HITS)], 0) == [
        "b: none of its 3 clips is among the 3 of a; what differs is not tested, evaluate both with one --data and --split",
        "c: 2 of its 3 clips are among the 3 of a; what differs is not tested, evaluate both with one --data and --split",
    ]


def test_models_without_queries_are_not_warned_of(make_outcome):
    assert clip_warnings([make_outcome("a", a2t=HITS), make_outcome("b", zero_shot_mAP=0.5)], 0) == []
