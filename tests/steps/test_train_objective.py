from typing import Any

import numpy as np
import pytest
import torch

from clapkit.config import TrainConfig, resolve
from clapkit.data.clusters import Clusters
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.objectives.added import AddedTerms
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.languages import Anchored, PerLanguage
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.window_fusion import FusedSimilarity
from clapkit.steps.train_objective import build_objective, logit_scale, start_from_scale, teacher_of
from clapkit.steps.train_options import make_plan, plugin_options
from clapkit.training.whole_batch import language_code


def objective_of(clusters: Clusters | None = None, row_features: np.ndarray | None = None, each: int = 1, **given: Any) -> Any:
    config = resolve(TrainConfig, {"batch_size": 4, "max_steps": 40} | given)
    return build_objective(
        config,
        plugin_options(config),
        plan=make_plan(config, 10),
        steps_per_epoch=10,
        num_rows=7,
        embedding_dim=6,
        clusters=clusters,
        features=row_features,
        captions_per_clip=each,
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


def test_a_queue_is_as_wide_as_the_embeddings() -> None:
    objective = objective_of(loss="albef", options=("queue=5",), temperature="cosine")
    assert objective.queue.audio.shape == (5, 6)
    assert objective.temperature.schedule is not None


@pytest.mark.parametrize("loss", ["compa", "hycd"])
def test_a_loss_that_adds_to_another_gets_its_base(loss: str) -> None:
    objective = objective_of(loss=loss, base="svr", radius="adaptive", tau=0.2)
    assert objective.wrapped.radius["both"].predictor[0].in_features == 4
    assert objective.temperature.tau == 0.2
    assert isinstance(objective_of(loss=loss).wrapped, InfoNCE)
    assert isinstance(objective_of(loss=loss, base="siglip").wrapped, SigLIP)


def test_languages_are_compared_each_for_itself_or_with_the_anchor() -> None:
    each = objective_of(loss="svr", language_strategy="all", add=("cyclip=1",), each=2)
    assert isinstance(each, PerLanguage)
    assert isinstance(each.objective, AddedTerms)
    anchored = objective_of(loss="infonce", language_strategy="anchor")
    assert isinstance(anchored, Anchored)
    assert anchored.anchor_code == language_code("en")
    assert objective_of(language_strategy="anchor", anchor_language="de").anchor_code == language_code("de")
    assert isinstance(objective_of(language_strategy="sample"), InfoNCE)


@pytest.mark.parametrize(("strategy", "rows"), [("all", 2), ("anchor", 2), ("sample", 4), (None, 4)])
def test_a_softmax_of_one_language_has_as_many_rows_as_there_are_clips(strategy: str | None, rows: int) -> None:
    # Batches of 4 pairs, 2 of each clip.
    objective = objective_of(loss="svr", radius="adaptive", language_strategy=strategy, each=2)
    svr = objective.objective if strategy in ("all", "anchor") else objective
    assert svr.radius["both"].predictor[0].in_features == rows


def test_windows_are_fused_inside_of_everything_else() -> None:
    objective = objective_of(windows=2, fusion="softmax", language_strategy="all", loss="siglip", add=("alignment=1",))
    fused = objective.objective.objective
    assert isinstance(fused, FusedSimilarity)
    assert isinstance(fused.wrapped, SigLIP)
    for fusion in ("mean", "attention", None):
        assert isinstance(objective_of(windows=2, fusion=fusion), InfoNCE)


@pytest.mark.parametrize(
    ("given", "momentum"),
    [
        ({"loss": "hycd"}, None),
        ({"loss": "albef"}, 0.995),
        ({"loss": "albef", "options": ("momentum=0.5",), "add": ("cyclip=1",)}, 0.5),
        ({"loss": "hycd", "language_strategy": "all"}, None),
    ],
)
def test_a_teacher_is_the_encoder_at_the_start_and_moves_as_the_loss_says(
    given: dict[str, Any], momentum: float | None
) -> None:
    encoder = torch.nn.Linear(2, 2)
    teacher = teacher_of(objective_of(**given), encoder)
    assert teacher is not None
    assert teacher.momentum == momentum
    assert teacher.encoder is not encoder
    assert torch.equal(teacher.encoder.weight, encoder.weight)
    assert not teacher.encoder.weight.requires_grad


@pytest.mark.parametrize("loss", ["infonce", "compa", "dbpm"])
def test_a_loss_that_asks_for_no_teacher_gets_none(loss: str) -> None:
    assert teacher_of(objective_of(loss=loss), torch.nn.Linear(2, 2)) is None


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
    assert start(reporter, scale, loss="hycd") == pytest.approx(tau)
    assert start(reporter, scale, loss="albef") == pytest.approx(tau)
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
    assert logit_scale(objective_of(loss="hycd", tau=0.1, language_strategy="all")) == pytest.approx(10)
    assert logit_scale(objective_of(windows=2, fusion="softmax", tau=0.2)) == pytest.approx(5)
    assert logit_scale(objective_of(temperature="cosine")) is None
    assert logit_scale(objective_of(loss="triplet")) is None


def test_the_temperature_of_the_windows_is_an_option_of_the_fusion_by_softmax() -> None:
    assert objective_of(windows=2, fusion="softmax").window_tau == 0.1
    assert objective_of(windows=2, fusion="softmax", options=("window_tau=0.5",)).window_tau == 0.5
    added = objective_of(windows=2, fusion="softmax", options=("fusion.window_tau=2",), add=("alignment=1",))
    assert added.objective.window_tau == 2
    with pytest.raises(ConfigError, match="window_tau=soft: expected a number"):
        objective_of(windows=2, fusion="softmax", options=("window_tau=soft",))
    with pytest.raises(UnknownNameError, match="window_tau"):
        objective_of(windows=2, fusion="mean", options=("window_tau=0.5",))
