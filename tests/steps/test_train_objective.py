from typing import Any

import numpy as np
import pytest
import torch

from clapkit.config import TrainConfig, resolve
from clapkit.data.clusters import Clusters
from clapkit.objectives.added import AddedTerms
from clapkit.objectives.siglip import SigLIP
from clapkit.steps.train_objective import build_objective, logit_scale, start_from_scale
from clapkit.steps.train_options import make_plan, plugin_options


def objective_of(clusters: Clusters | None = None, row_features: np.ndarray | None = None, **given: Any) -> Any:
    config = resolve(TrainConfig, {"batch_size": 4, "max_steps": 40} | given)
    return build_objective(
        config,
        plugin_options(config),
        plan=make_plan(config, 10),
        steps_per_epoch=10,
        num_rows=7,
        clusters=clusters,
        features=row_features,
    )


def test_a_schedule_knows_the_length_of_the_run_and_the_clusters() -> None:
    # Clusters of 3 rows and of 1: shifts 0.2 and 0.05; 40 steps and 2 oscillations: step 10 is half a period, -0.04.
    clusters = Clusters.of(np.array([7, 7, 7, 5]))
    objective = objective_of(clusters, temperature="mmts", options=("oscillations=2",))
    values = objective.temperature.schedule(torch.tensor([0, 3]), 10 / 40)
    assert values.tolist() == pytest.approx([0.16, 0.01])


def test_an_epoch_of_the_run_is_an_epoch_of_its_schedule() -> None:
    objective = objective_of(temperature="cosine", options=("unit=epoch", "oscillations=1"))
    first, same, other = (objective.temperature.schedule(torch.tensor([0]), step / 40).item() for step in (10, 19, 20))
    assert first == same != other


def test_margins_have_the_defaults_of_margins() -> None:
    clusters = Clusters.of(np.array([0, 0, 0, 1]))
    objective = objective_of(clusters, loss="triplet", margin_schedule="mmts")
    assert objective.margin(torch.tensor([0, 3]), 0.0).tolist() == pytest.approx([0.40, 0.27])


def test_the_loss_gets_what_it_asks_for_and_nothing_else() -> None:
    assert objective_of(loss="svr").radius["both"].predictor[0].in_features == 4
    features = np.eye(4, dtype=np.float32)
    assert objective_of(loss="cwcl", row_features=features).side == "text"
    assert objective_of(loss="cwcl", row_features=features, features="audio").side == "audio"


def test_a_loss_that_weighs_pairs_gets_its_base_with_all_that_a_run_says_about_it() -> None:
    options = ("c1=3", "base.normalize_support=true", "oscillations=1")
    objective = objective_of(loss="dbpm", base="svr", radius="adaptive", alpha=0.5, temperature="cosine", options=options)
    assert (objective.below, objective.above, len(objective.counted)) == (3.0, 2.0, 7)
    svr = objective.wrapped
    assert svr.radius["both"].predictor[0].in_features == 4
    assert (svr.settings.alpha, svr.settings.normalize_support) == (0.5, True)
    assert objective.temperature is svr.base.temperature
    assert objective.temperature.schedule is not None


def test_the_base_of_a_loss_that_weighs_pairs_is_infonce_unless_said_otherwise() -> None:
    objective = objective_of(loss="alip", tau=0.1, captions_per_clip=2, options=("strength=1", "targets=ot", "ot_eps=0.2"))
    assert (objective.strength, objective.wrapped.temperature.tau) == (1.0, 0.1)
    assert objective.wrapped.rectification.eps == 0.2
    sigmoid = objective_of(loss="dbpm", base="svr", options=("base.base=siglip",))
    assert isinstance(sigmoid.wrapped.base, SigLIP)


def test_terms_get_their_options() -> None:
    objective = objective_of(add=("cyclip=0.5",), options=("cyclip.in_modal=false",))
    assert isinstance(objective, AddedTerms)
    audio = torch.nn.functional.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    # One axis stretched: the cosines across stay symmetric, those within the two modalities differ.
    scale = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
    text = audio * scale
    batch = (audio, text, torch.eye(3, dtype=torch.bool), torch.arange(3), 0.0)
    assert objective(*batch).terms["added_cyclip"] == pytest.approx(0.0, abs=1e-6)
    assert objective_of(add=("cyclip=0.5",))(*batch).terms["added_cyclip"] > 0.01


def start(reporter: Any, scale: float | None, **given: Any) -> Any:
    config = resolve(TrainConfig, given)
    options = plugin_options(config)
    start_from_scale(config, options, scale, reporter)
    return options.get("base", options["loss"]).get("tau")


@pytest.mark.parametrize(
    ("scale", "tau"),
    [(20.0, 0.05), (1 / 0.07, 0.07), (400.0, 0.01), (0.5, 1.0)],  # 1 / scale, within what a temperature may be
)
def test_a_learned_temperature_starts_where_the_model_ended(scale: float, tau: float, reporter: Any) -> None:
    assert start(reporter, scale) == pytest.approx(tau)
    assert start(reporter, scale, loss="svr") == pytest.approx(tau)
    assert start(reporter, scale, loss="dbpm", base="svr") == pytest.approx(tau)
    assert all("temperature: starts at" in message for message in reporter.said)


@pytest.mark.parametrize(
    ("scale", "given"),
    [
        (None, {}),
        (20.0, {"temperature": "fixed"}),
        (20.0, {"temperature": "mmts"}),
        (20.0, {"loss": "siglip"}),
        (20.0, {"loss": "svr", "base": "siglip"}),
        (20.0, {"loss": "triplet"}),
    ],
)
def test_a_temperature_that_is_not_learned_is_left_alone(scale: float | None, given: dict[str, Any], reporter: Any) -> None:
    assert start(reporter, scale, **given) is None
    assert reporter.said == []


def test_a_temperature_that_is_given_stays(reporter: Any) -> None:
    assert start(reporter, 20.0, tau=0.2) == 0.2
    assert start(reporter, 20.0, options=("loss.tau=0.3",)) == "0.3"
    assert reporter.said == []


def test_the_factor_on_similarities_is_that_of_the_temperature() -> None:
    assert logit_scale(objective_of(tau=0.05)) == pytest.approx(20)
    assert logit_scale(objective_of(loss="svr", tau=0.1)) == pytest.approx(10)
    assert logit_scale(objective_of(temperature="cosine")) is None
    assert logit_scale(objective_of(loss="triplet")) is None
