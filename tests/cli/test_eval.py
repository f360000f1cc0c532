import json


def test_metrics_are_shown_in_percent_with_intervals(fake_step, clapkit_call):
    fake_step("eval")
    out = clapkit_call("eval").stdout
    assert "retrieval: svr on toy test, 4 clips" in out
    (row,) = [line for line in out.splitlines() if "t2a_R@1" in line]
    assert row.split() == ["t2a_R@1", "50.0", "%", "25.0", "%", "–", "75.0", "%", "12.5", "%"]  # the last is chance
    assert any("t2a_MedR" in line and "1.5" in line and "1.0 – 2.0" in line for line in out.splitlines())


def test_a_metric_without_an_interval_is_shown(fake_step, clapkit_call):
    step = fake_step("eval")
    step.result["runs"][0]["tasks"]["retrieval"]["intervals"] = {}
    result = clapkit_call("eval", "--bootstrap", "0")
    assert result.exit_code == 0
    assert "50.0 %" in result.stdout
    assert "interval" not in result.stdout  # no column that says nothing


def test_several_runs_are_ranked_with_what_may_be_claimed(fake_step, clapkit_call):
    step = fake_step("eval")
    (run,) = step.result["runs"]
    step.result["runs"] = [run, run | {"run": "infonce"}]
    step.result["comparison"] = {
        "baseline_method": "infonce",
        "headline": ["t2a_R@1", "a2t_R@1"],
        "methods": [
            {
                "method": "svr",
                "metrics": {"t2a_R@1": 0.5, "t2a_MedR": 2.0},
                "verdicts": {"t2a_R@1": {"verdict": "better", "reason": "x"}},
            },
            {"method": "infonce", "metrics": {"t2a_R@1": 0.25, "a2t_R@1": 0.5}, "verdicts": {}},
        ],
    }
    lines = [line.split() for line in clapkit_call("eval", "infonce", "svr").stdout.splitlines()]
    assert step.configs[0].runs == ("infonce", "svr")
    assert ["metric", "svr", "infonce"] in lines
    assert ["t2a_R@1", "50.0", "%", "25.0", "%"] in lines
    assert ["t2a_MedR", "2.0"] in lines
    assert ["svr", "50.0", "%", "+"] in lines
    assert ["infonce", "25.0", "%", "50.0", "%"] in lines


def test_fractions_stay_fractions_in_json(fake_step, clapkit_call):
    fake_step("eval")
    assert json.loads(clapkit_call("eval", "--json").stdout)["metrics"] == {"t2a_R@1": 0.5}
