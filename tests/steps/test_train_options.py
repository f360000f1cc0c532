from clapkit.config import TrainConfig, resolve
from clapkit.steps.train_options import make_plan, plugin_options


def test_options_find_their_plugin() -> None:
    config = resolve(TrainConfig, {"loss": "svr", "alpha": 0.5, "options": ["window_s=2", "text.dropout=0.2", "loss.beta=0.1"]})
    options = plugin_options(config)
    assert options["audio"] == {"window_s": "2"}
    assert options["text"] == {"dropout": "0.2"}
    assert options["loss"]["alpha"] == 0.5
    assert options["loss"]["beta"] == "0.1"
    assert "batch_size" not in options["loss"]


def test_the_plan_counts_in_steps() -> None:
    plan = make_plan(resolve(TrainConfig, {"epochs": 3, "eval_every": 2, "keep_best": "t2a_MedR"}), 10)
    assert (plan.total_steps, plan.eval_every, plan.warmup_steps) == (30, 20, 1)
    assert plan.lower_is_better
    assert make_plan(resolve(TrainConfig, {"max_steps": 7}), 10).total_steps == 7
    assert make_plan(resolve(TrainConfig, {"epochs": 2000}), 10).warmup_steps == 500
    assert make_plan(resolve(TrainConfig, {"max_steps": 5, "warmup_steps": 9}), 10).warmup_steps == 5
