import pytest
import torch

from clapkit import registry
from clapkit.objectives.infonce import InfoNCE
from clapkit.steps.train_drift import drift_diagnostics, reference_of


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
