import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.objectives import row_blocks
from clapkit.objectives.added import with_terms
from clapkit.objectives.infonce import InfoNCE
from clapkit.steps.train_drift import drift_diagnostics, parts_of, reference_of


@pytest.mark.parametrize("loss", ["infonce", "svr", "reweighted"])
def test_a_run_on_infonce_is_compared_with_that_very_infonce(loss):
    objective = registry.build("loss", loss, {"targets": "soft"})
    reference = reference_of(objective)
    assert any(module is reference for module in objective.modules())
    assert reference.targets == "soft"


def test_another_loss_lends_its_temperature_to_plain_infonce():
    objective = registry.build("loss", "siglip", {})
    reference = reference_of(objective)
    assert isinstance(reference, InfoNCE)
    assert reference.temperature is objective.temperature
    assert reference.targets == "ignore"


def test_without_a_temperature_the_reference_has_a_fixed_one():
    reference = reference_of(registry.build("loss", "triplet", {}))
    assert reference.temperature.value(torch.arange(2), 0.0) == 0.07
    assert list(reference.parameters()) == []


class Rows:
    """A training split of five clips that notes what is asked of it."""

    manifest = range(5)

    def __init__(self, captions_per_clip):
        self.captions_per_clip = captions_per_clip
        self.asked = []

    def probe(self, rows, *, captions_per_clip=1):
        self.asked.append((len(rows), captions_per_clip))
        return self.asked[-1]


@pytest.mark.parametrize(("each", "bank"), [(1, (5, 1)), (2, (5, 2))])
def test_the_bank_brings_as_many_captions_of_a_clip_as_a_batch(each, bank):
    # Five clips with two captions each are ten pairs, enough for a batch of 8; with one each they are five.
    diagnostics = drift_diagnostics(registry.build("loss", "infonce", {}), Rows(each), batch_size=4 * each, seed=0)
    assert diagnostics.probe == (5, 1)
    assert diagnostics.bank == [bank]
    assert diagnostics.parts is not None


@pytest.mark.parametrize("loss", ["svr", "reweighted"])
@pytest.mark.parametrize("base", ["infonce", "siglip"])
def test_the_base_of_a_loss_that_wraps_one_is_that_very_one(loss, base):
    objective = registry.build("loss", loss, {"base": base})
    parts = parts_of(with_terms(objective, ["uniformity=0.1"]))
    assert parts.base is objective.base
    assert parts.added is not None
    assert (parts.directions is not None) == (base == "infonce")


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_a_loss_that_is_a_base_adds_nothing(loss):
    objective = registry.build("loss", loss, {})
    assert parts_of(objective).base is objective
    assert parts_of(objective).added is None
    assert parts_of(with_terms(objective, ["uniformity=0.1"])).added is not None


@pytest.mark.parametrize("loss", ["triplet", "dcl"])
def test_a_loss_that_holds_no_base_has_no_parts(loss):
    assert parts_of(registry.build("loss", loss, {})) is None


@pytest.mark.parametrize(
    ("targets", "most_rows"), [("ignore", 6), ("soft", 6), ("ot", 6), ("ignore", 4), ("soft", 4)]
)  # a batch of 6, whole or in blocks
def test_a_direction_is_that_of_the_loss(targets, most_rows, monkeypatch):
    monkeypatch.setattr(row_blocks, "MOST_ROWS", most_rows)
    generator = torch.Generator().manual_seed(0)
    audio, text = (normalize(torch.randn(6, 3, generator=generator), dim=1) for _ in range(2))
    positives = torch.eye(6, dtype=torch.bool)
    positives[1, 3] = positives[3, 1] = True
    objective = registry.build("loss", "infonce", {"targets": targets})
    batch = (audio, text, positives, torch.arange(6), 0.5)
    parts, output = parts_of(objective), objective(*batch)
    t2a, a2t = (direction(*batch).total.item() for direction in parts.directions)
    assert (t2a, a2t) == pytest.approx((output.terms["t2a"], output.terms["a2t"]), rel=1e-6)
    assert t2a != pytest.approx(a2t, rel=1e-3)
