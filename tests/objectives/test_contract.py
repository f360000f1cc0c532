import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.added import AddedTerms, with_terms
from clapkit.objectives.contract import (
    check_batch,
    full_precision,
    loss_output,
    needs_of,
    require,
    require_choice,
    score,
    undecayed_group,
)
from clapkit.objectives.languages import Anchored, PerLanguage
from clapkit.objectives.targets import Policy
from clapkit.objectives.window_fusion import FusedSimilarity
from clapkit.types import Context, LossOutput


def batch(batch_size=3, width=4):
    rows = torch.zeros(batch_size, width)
    return rows, rows, torch.eye(batch_size, dtype=torch.bool), torch.arange(batch_size)


def test_a_proper_batch_passes():
    check_batch(*batch())


def test_towers_of_different_shape_are_refused():
    audio, text, positives, index = batch()
    with pytest.raises(ShapeError, match=r"audio is \[3, 4\] and text \[3, 3\]"):
        check_batch(audio, text[:, :3], positives, index)


def test_a_single_pair_is_refused():
    with pytest.raises(ShapeError, match="batch of 1 pairs has no negatives"):
        check_batch(*batch(batch_size=1))


@pytest.mark.parametrize("positives", [torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 3)])
def test_positives_of_other_shape_or_type_are_refused(positives):
    audio, text, _, index = batch()
    with pytest.raises(ShapeError, match=r"expected torch.bool \[3, 3\]"):
        check_batch(audio, text, positives, index)


def test_an_index_of_other_length_is_refused():
    audio, text, positives, index = batch()
    with pytest.raises(ShapeError, match=r"index is \[2\]; expected \[3\]"):
        check_batch(audio, text, positives, index[:2])


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_maths_runs_in_float32_or_better(given, expected):
    rows = torch.eye(2, dtype=given)
    with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(rows, rows) as (audio, text):
        assert audio.dtype == text.dtype == expected
        assert (audio @ text.T).dtype == expected


def test_numbers_come_out_under_their_names_in_float():
    total = torch.tensor(2.0, requires_grad=True)
    output = loss_output(total * 1, {"t2a": total * 3}, {"tau": 0.07, "bias": total.detach() - 5, "mean": total / 4})
    assert output.terms == {"t2a": 6.0}
    assert output.stats == {"tau": 0.07, "bias": -3.0, "mean": 0.5}
    assert output.total.requires_grad


def test_a_group_has_a_name_and_no_decay():
    parameter = torch.nn.Parameter(torch.zeros(()))
    assert undecayed_group("radius", [parameter], 0.1) == {
        "name": "radius",
        "params": [parameter],
        "lr": 0.1,
        "weight_decay": 0.0,
    }


def test_refusals_carry_the_message():
    with pytest.raises(ConfigError, match="^no$"):
        require(False, "no")
    require(True, "no")
    with pytest.raises(ConfigError, match="targets=hard: expected one of ignore, soft"):
        require_choice("targets", "hard", Policy)
    require_choice("targets", "soft", Policy)


# What an objective is told beside the pairs ------------------------------------------------------------------------------

NEEDS = {"compa": {"variants"}, "hycd": {"teacher"}, "albef": {"teacher"}}


@pytest.mark.parametrize("name", sorted(set(registry.names("loss")) - {"cwcl", "svr", "sogclr", "dbpm"}))
def test_a_loss_says_what_it_needs_and_most_need_nothing(name):
    assert needs_of(registry.build("loss", name)) == NEEDS.get(name, set())


@pytest.mark.parametrize(
    ("make", "needs"),
    [
        (lambda: registry.build("loss", "hycd", {"rafa": 0.5}), {"teacher", "features"}),
        (lambda: FusedSimilarity(registry.build("loss", "infonce")), {"windows"}),
        (lambda: PerLanguage(registry.build("loss", "compa")), {"language", "variants"}),
        (lambda: Anchored(registry.build("loss", "siglip"), 1), {"language"}),
        (lambda: PerLanguage(with_terms(registry.build("loss", "hycd"), ["cyclip=1"])), {"language", "teacher"}),
    ],
)
def test_a_loss_needs_what_its_parts_need(make, needs):
    assert needs_of(make()) == needs


class Told(torch.nn.Module):
    """A loss that keeps what it is told."""

    needs = frozenset({"language", "features"})
    told = None

    def forward(self, audio, text, positives, index, progress, context=None):
        self.told = context
        return LossOutput(audio.sum(), {}, {})


def told():
    rows = torch.arange(3.0)
    return Context(language=rows, audio_features=rows, text_features=rows, windows=rows)


def test_a_loss_that_needs_something_is_told_everything():
    context, objective = told(), Told()
    assert score(objective, *batch(), 0.5, context).total == 0
    assert objective.told is context


def test_a_loss_that_needs_nothing_is_called_without_a_context():
    class Plain(torch.nn.Module):
        def forward(self, audio, text, positives, index, progress):
            return LossOutput(audio.sum() + progress, {}, {})

    assert score(Plain(), *batch(), 0.5, told()).total == 0.5


def test_what_is_around_a_loss_hands_the_context_on():
    context, objective = told(), Told()
    wrapped = with_terms(objective, ["alignment=1"])
    assert isinstance(wrapped, AddedTerms)
    score(wrapped, *batch(), 0.5, context)
    assert objective.told is context


@pytest.mark.parametrize(
    ("context", "missing"),
    [
        (None, "features, language"),
        (Context(), "features, language"),
        (Context(language=torch.zeros(3), windows=torch.zeros(3)), "features"),
        (Context(audio_features=torch.zeros(3)), "language"),
    ],
)
def test_a_batch_that_lacks_what_a_loss_needs_is_refused_by_name(context, missing):
    with pytest.raises(ShapeError, match=f"^Told: the batch brings no {missing}, which this objective needs$"):
        score(Told(), *batch(), 0.5, context)


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_the_context_of_some_pairs_is_theirs(rows):
    truth = torch.tensor([[1, -1], [0, 0], [-1, -1]], dtype=torch.int8)
    selected = Context(language=torch.tensor([10, 11, 12]), variant_truth=truth).select(rows)
    order = [2, 0] if rows.dtype == torch.int64 else [0, 2]
    assert selected.language.tolist() == [10 + row for row in order]
    assert torch.equal(selected.variant_truth, truth[order])
    assert selected.variants is None
    assert selected.windows is None
