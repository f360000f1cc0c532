import json

import pytest


def test_hits_are_shown_with_rank_score_span_and_caption(fake_step, clapkit_call):
    fake_step("retrieve")
    result = clapkit_call("retrieve", "dog barking")
    assert result.exit_code == 0
    assert "“dog barking”" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if "toy/dog" in line]
    for cell in ("1", "0.710", "0.0–5.0 s", "A dog [barks]."):
        assert cell in line
    assert "Another." not in result.stdout


def test_a_caption_without_a_span_is_shown_too(fake_step, clapkit_call):
    step = fake_step("retrieve")
    hit = step.result["results"][0]["hits"][0] | {"start_s": None, "end_s": None}
    step.result = step.result | {"results": [{"query": "q", "hits": [hit]}]}
    assert "toy/dog" in clapkit_call("retrieve", "q", "--target", "text").stdout


def test_the_words_are_what_is_looked_for(fake_step, clapkit_call):
    step = fake_step("retrieve")
    clapkit_call("retrieve", "dog barking")
    clapkit_call(
        "retrieve", "dog barking", "rain", "-k", "3", "--where", "split == 'test'", "--audio", "a.wav", "--audio", "b.wav"
    )
    first, second = step.configs
    assert (first.query, first.k, first.target, first.index, first.min_score) == (("dog barking",), 10, "audio", "exact", None)
    assert (second.query, second.k, second.where) == (("dog barking", "rain"), 3, "split == 'test'")
    assert second.audio == ("a.wav", "b.wav")


def test_a_query_leaves_nothing_behind(fake_step, clapkit_call, workplace):
    step = fake_step("retrieve")
    result = clapkit_call("retrieve", "dog barking", "--json")
    assert json.loads(result.stdout) == step.result
    assert step.run_dirs == [None]
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("flags", [["--name", "x"], ["--run-dir", "runs/retrieve/x"], ["--name", "x", "--queries", "q.txt"]])
def test_a_named_query_or_many_from_a_file_leave_a_run(flags, fake_step, clapkit_call, workplace):
    step = fake_step("retrieve")
    assert clapkit_call("retrieve", "dog barking", *flags).exit_code == 0
    assert json.loads((workplace / "runs/retrieve/x/result.json").read_text()) == step.result
