import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.objectives.added import with_terms
from clapkit.steps.train_drift import parts_of
from clapkit.training.gradient_agreement import (
    Part,
    PartAdded,
    PartOfPairs,
    Parts,
    gradient_agreement,
    gradient_cosine,
    gradients_of,
    rows_of_languages,
)
from clapkit.types import LossOutput

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


class Towers(nn.Module):
    """A linear tower each, without bias, or one for both."""

    def __init__(self, *, tied: bool = False, unit_norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio = nn.Linear(5, 4, bias=False)
        self.text = self.audio if tied else nn.Linear(5, 4, bias=False)
        self.unit_norm = unit_norm

    def forward(self, sounds: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        audio, text = self.audio(sounds), self.text(captions)
        return (normalize(audio, dim=1), normalize(text, dim=1)) if self.unit_norm else (audio, text)


def stepping(towers: Towers, sounds: Tensor = X, captions: Tensor = Y) -> Callable[[nn.Module], Towers]:
    """As the loop does it: a loss on a batch, and the gradients left in a copy of the towers."""
    positives, index = torch.eye(len(sounds), dtype=torch.bool), torch.arange(len(sounds))

    def take_step(loss: nn.Module) -> Towers:
        copied, loss = copy.deepcopy((towers, loss))
        loss(*copied(sounds, captions), positives, index, 0.5).total.backward()
        loss.after_step()  # type: ignore[operator]
        return copied

    return take_step


def agreement(parts: Parts | None, towers: Towers, languages: Any = (), **options: Any) -> dict[str, float]:
    return gradient_agreement(parts, languages, take_step=stepping(towers, **options), known={})


def vector(towers: nn.Module, total: Tensor) -> Tensor:
    """The gradient as one vector, by the plain way."""
    trained = [p for p in towers.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, trained, retain_graph=True)])


class Linear(Part):
    """``sum_i u . a_i + v . t_i``: its gradients do not depend on the embeddings."""

    def __init__(self, on_audio: list[float] | None, on_text: list[float]) -> None:
        super().__init__()
        self.on_audio, self.on_text = on_audio, torch.tensor(on_text)

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        total = (text @ self.on_text).sum()
        if self.on_audio is not None:
            total = total + (audio @ torch.tensor(self.on_audio)).sum()
        return LossOutput(total, {}, {})


class Scaled(nn.Module):
    """An objective that is a loss times a number."""

    def __init__(self, base: nn.Module, factor: float) -> None:
        super().__init__()
        self.base, self.factor = base, factor

    def forward(self, *batch: Any) -> LossOutput:
        return LossOutput(self.factor * self.base(*batch).total, {}, {})


def infonce() -> nn.Module:
    return registry.build("loss", "infonce", {})


# The definition -----------------------------------------------------------------------------------------------------------


def test_known_gradients_through_linear_towers_have_the_cosine_worked_out_by_hand() -> None:
    # One pair, x = (1, 1), y = (1, 2). The gradient of u.A x is u x^T in A, that of v.T y is v y^T in T.
    # First loss: 0 in A, (3, 4) y^T in T, length 5 sqrt 5. Second: (0, 2) x^T in A, (1, 0) y^T in T, length sqrt(4 * 2 + 5).
    # Inner product 3 * 5 = 15, so the cosine is 15 / (5 sqrt 5 sqrt 13) = 3 / sqrt 65.
    towers = Towers(unit_norm=False)
    towers.audio, towers.text = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    batch = {"sounds": torch.tensor([[1.0, 1.0]]), "captions": torch.tensor([[1.0, 2.0]])}
    directions = (Linear(None, [3.0, 4.0]), Linear([0.0, 2.0], [1.0, 0.0]))
    found = agreement(Parts(infonce(), directions=directions), towers, **batch)
    assert found == {"grad_cos_directions": pytest.approx(3 / math.sqrt(65), rel=1e-6)}
    turned = (directions[0], Linear([0.0, -2.0], [-1.0, 0.0]))
    assert agreement(Parts(infonce(), directions=turned), towers, **batch) == {
        "grad_cos_directions": pytest.approx(-3 / math.sqrt(65), rel=1e-6)
    }


def test_directions_of_a_symmetric_batch_agree_wholly_and_those_of_another_do_not() -> None:
    # With one tower for both and sounds that are their captions, either direction is the other one.
    loss = infonce()
    symmetric = agreement(parts_of(loss), Towers(tied=True), captions=X)
    assert symmetric == {"grad_cos_directions": pytest.approx(1.0, abs=1e-6)}
    assert agreement(parts_of(loss), Towers())["grad_cos_directions"] < 0.99


@pytest.mark.parametrize("frozen", [None, "audio"])
def test_directions_have_the_cosine_of_the_gradients_of_all_trained_parameters(frozen: str | None) -> None:
    towers, loss = Towers(), infonce()
    if frozen is not None:
        towers.get_submodule(frozen).requires_grad_(False)
    audio, text = towers(X, Y)
    logits, own = text @ audio.T / 0.07, torch.arange(6)
    t2a, a2t = (vector(towers, nn.functional.cross_entropy(rows, own)) for rows in (logits, logits.T))
    assert len(t2a) == (40 if frozen is None else 20)
    oracle = torch.cosine_similarity(t2a, a2t, dim=0)
    assert agreement(parts_of(loss), towers)["grad_cos_directions"] == pytest.approx(float(oracle), abs=1e-5)


# What is added ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "sign"), [(3.0, 1), (0.5, -1)])
def test_a_loss_that_is_counted_more_agrees_with_itself_and_one_that_is_counted_less_opposes_it(
    factor: float, sign: int
) -> None:
    base = infonce()
    found = agreement(Parts(base, added=PartAdded(Scaled(base, factor), base)), Towers())
    assert found == {"grad_cos_added": pytest.approx(sign, abs=1e-6)}


@pytest.mark.parametrize(
    "options",
    [
        {"radius": "ratio"},
        {"radius": "adaptive", "batch_size": 6},
        {"radius": "ratio", "base": "siglip"},
    ],
)
def test_what_svr_adds_is_its_total_minus_its_base(options: dict[str, Any]) -> None:
    towers, objective = Towers(), registry.build("loss", "svr", options)
    batch = (*towers(X, Y), torch.eye(6, dtype=torch.bool), torch.arange(6), 0.5)
    base, whole = (vector(towers, loss(*batch).total) for loss in (objective.base, objective))
    oracle = torch.cosine_similarity(whole - base, base, dim=0)
    assert agreement(parts_of(objective), towers)["grad_cos_added"] == pytest.approx(float(oracle), abs=1e-5)


def test_an_added_term_is_what_is_added() -> None:
    towers, base = Towers(), infonce()
    objective = with_terms(base, ["alignment=0.3"])
    audio, text = towers(X, Y)
    alignment = (audio - text).square().sum(dim=1).mean()
    own = base(audio, text, torch.eye(6, dtype=torch.bool), torch.arange(6), 0.5).total
    oracle = torch.cosine_similarity(vector(towers, own), vector(towers, alignment), dim=0)
    assert agreement(parts_of(objective), towers)["grad_cos_added"] == pytest.approx(float(oracle), abs=1e-5)


@pytest.mark.parametrize("addition", ["alignment=0", "alignment=1e-8"])
def test_nothing_added_and_what_rounds_to_nothing_are_left_out(addition: str) -> None:
    found = agreement(parts_of(with_terms(infonce(), [addition])), Towers())
    assert set(found) == {"grad_cos_directions"}


def test_half_precision_embeddings_are_subtracted_in_float32() -> None:
    base = infonce()
    audio, text = (embedded.detach().bfloat16().requires_grad_() for embedded in Towers()(X, Y))
    PartAdded(Scaled(base, 1.001), base)(audio, text, torch.eye(6, dtype=torch.bool), torch.arange(6), 0.5).total.backward()
    added = torch.stack([audio.grad, text.grad]).float()
    expected = torch.autograd.grad(base(audio, text, torch.eye(6, dtype=torch.bool), torch.arange(6), 0.5).total, [audio, text])
    assert torch.cosine_similarity(added.flatten(), torch.stack(expected).float().flatten(), dim=0) > 0.999


# Languages ----------------------------------------------------------------------------------------------------------------


def test_languages_have_the_mean_and_the_lowest_cosine_over_their_pairs() -> None:
    towers, base = Towers(), infonce()
    sounds, captions = torch.cat([X, X + Y]), torch.cat([Y, Y - X])  # 12 pairs
    languages = ["de", "en", "fr", "en", "fr", "de", "en", "es", "fr", "fr", "de", "en"]  # es: one caption only
    vectors = []
    for language in ("de", "en", "fr"):
        rows = torch.tensor([row for row, own in enumerate(languages) if own == language])
        audio, text = towers(sounds[rows], captions[rows])
        loss = base(audio, text, torch.eye(len(rows), dtype=torch.bool), rows, 0.5).total
        vectors.append(vector(towers, loss))
    pairs = itertools.combinations(vectors, 2)
    cosines = [float(torch.cosine_similarity(one, other, dim=0)) for one, other in pairs]
    found = agreement(Parts(base), towers, languages, sounds=sounds, captions=captions)
    assert found["grad_cos_languages"] == pytest.approx(sum(cosines) / 3, abs=1e-5)
    assert found["grad_cos_languages_min"] == pytest.approx(min(cosines), abs=1e-5)
    assert min(cosines) < sum(cosines) / 3


def test_the_pairs_of_a_language_are_scored_as_if_there_were_no_others() -> None:
    audio, text = Towers()(X, Y)
    positives = torch.eye(6, dtype=torch.bool)
    positives[4, 1] = positives[1, 4] = positives[0, 4] = positives[4, 0] = True
    rows = torch.tensor([4, 1, 2])
    expected = infonce()(
        audio[rows], text[rows], torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool(), torch.tensor([4, 1, 2]), 0.5
    )
    found = PartOfPairs(infonce(), rows)(audio, text, positives, torch.arange(6), 0.5)
    torch.testing.assert_close(found.total, expected.total)
    assert found.total != infonce()(audio, text, positives, torch.arange(6), 0.5).total


@pytest.mark.parametrize("languages", [[], ["en"] * 6, ["en"] * 5 + ["de"], list("abcdef")])
def test_where_fewer_than_two_languages_have_two_captions_none_are_compared(languages: list[str]) -> None:
    assert rows_of_languages(languages) == []
    assert agreement(Parts(infonce()), Towers(), languages) == {}


def test_a_language_whose_captions_are_all_one_wants_nothing_and_is_left_out() -> None:
    class Same(Part):
        """Wants nothing of rows 0 and 1, and of others what ``infonce`` wants."""

        def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
            factor = 0.0 if index[0] == 0 else 1.0
            return LossOutput(factor * infonce()(audio, text, positives, index, progress).total, {}, {})

    assert agreement(Parts(Same()), Towers(), ["en", "en", "de", "de", "de", "de"]) == {}
    kept = agreement(Parts(Same()), Towers(), ["en", "en", "de", "de", "fr", "fr"])
    assert kept["grad_cos_languages"] == kept["grad_cos_languages_min"]


# Gradients ----------------------------------------------------------------------------------------------------------------


def test_a_cosine_is_that_of_all_parameters_as_one_vector_where_a_missing_one_is_zero() -> None:
    generator = torch.Generator().manual_seed(2)
    a = {name: torch.randn(3, 2, generator=generator) for name in ("one", "two")}
    b = {name: torch.randn(3, 2, generator=generator) for name in ("two", "three")}
    zero = torch.zeros(6)
    whole_a = torch.cat([a["one"].flatten(), a["two"].flatten(), zero])
    whole_b = torch.cat([zero, b["two"].flatten(), b["three"].flatten()])
    assert gradient_cosine(a, b) == pytest.approx(float(torch.cosine_similarity(whole_a, whole_b, dim=0)), abs=1e-6)
    assert gradient_cosine(a, {name: 7 * value for name, value in a.items()}) == pytest.approx(1.0)
    assert gradient_cosine(a, {name: -value for name, value in a.items()}) == pytest.approx(-1.0)


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_gradient_of_zero_or_one_that_overflowed_has_no_cosine(bad: float) -> None:
    assert math.isnan(gradient_cosine({"w": torch.tensor([1.0, 2.0])}, {"w": torch.full((2,), bad)}))
    assert math.isnan(gradient_cosine({"w": torch.tensor([1.0, 2.0])}, {}))


def test_a_loss_whose_gradients_are_known_takes_no_step() -> None:
    objective = registry.build("loss", "svr", {"radius": "ratio"})
    parts, step, taken = parts_of(objective), stepping(Towers()), []
    assert parts is not None

    def take_step(loss: nn.Module) -> nn.Module:
        taken.append(type(loss).__name__)
        return step(loss)

    whole = gradient_agreement(parts, [], take_step=take_step, known={})
    assert taken == ["PartOfDirection", "PartOfDirection", "InfoNCE", "PartAdded"]
    taken.clear()
    known = {parts.base: gradients_of(step(parts.base))}
    assert gradient_agreement(parts, [], take_step=take_step, known=known) == whole
    assert taken == ["PartOfDirection", "PartOfDirection", "PartAdded"]


def test_an_objective_without_parts_has_no_number() -> None:
    assert agreement(None, Towers(), ["en", "en", "de", "de", "fr", "fr"]) == {}
