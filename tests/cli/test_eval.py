import json


def test_metrics_are_shown_in_percent_with_intervals(fake_step, clapkit_call):
    fake_step("eval")
    out = clapkit_call("eval").stdout
    assert "svr on toy test: 4 clips" in out
    assert any("t2a_R@1" in line and "50.0 %" in line and "25.0 % – 75.0 %" in line for line in out.splitlines())
    assert any("t2a_MedR" in line and "1.5" in line and "1.0 – 2.0" in line for line in out.splitlines())


def test_a_metric_without_an_interval_is_shown(fake_step, clapkit_call):
    step = fake_step("eval")
    step.result["runs"][0]["tasks"]["retrieval"]["intervals"] = {}
    result = clapkit_call("eval", "--bootstrap", "0")
    assert result.exit_code == 0
    assert "50.0 %" in result.stdout


def test_every_run_has_its_table(fake_step, clapkit_call):
    step = fake_step("eval")
    (run,) = step.result["runs"]
    step.result = step.result | {"runs": [run, run | {"run": "infonce"}]}
    out = clapkit_call("eval", "svr", "infonce").stdout
    assert out.index("svr on toy") < out.index("infonce on toy")
    assert step.configs[0].runs == ("svr", "infonce")


def test_fractions_stay_fractions_in_json(fake_step, clapkit_call):
    fake_step("eval")
    assert json.loads(clapkit_call("eval", "--json").stdout)["metrics"] == {"t2a_R@1": 0.5}
