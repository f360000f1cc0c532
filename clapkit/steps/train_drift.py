"""What the drift measurements of a run are made with.

An InfoNCE to compare with, fixed pairs of the training set, and the parts of the objective whose gradients are compared.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from clapkit.data.dataset import TrainingBatches
from clapkit.metrics.geometry import PAIR_GEOMETRY
from clapkit.objectives.contract import full_precision
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.row_blocks import needs_blocks
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.similarity import cosine
from clapkit.objectives.temperature import Temperature
from clapkit.training.diagnostics import Diagnostics
from clapkit.training.gradient_agreement import Part, PartAdded, Parts
from clapkit.types import LossOutput

BANK_PAIRS = 512
PROBE_PAIRS = 64
_TAU = 0.07


def drift_diagnostics(objective: nn.Module, batches: TrainingBatches, *, batch_size: int, seed: int) -> Diagnostics:
    """Diagnostics of a run.

    The bank brings as many captions of each clip as a batch does: so it holds a batch wherever the training split does.

    Args:
        objective: of the run; the reference shares its temperature, where it has one.
        batches: the training set.
        batch_size: pairs in a batch.
        seed: of the draws.
    """
    num_rows = len(batches.manifest)
    each = batches.captions_per_clip
    num_clips = -(-max(BANK_PAIRS, batch_size) // each)
    rows = np.random.default_rng([seed, num_rows]).permutation(num_rows)[:num_clips]
    parts = [rows[start : start + PROBE_PAIRS] for start in range(0, len(rows), PROBE_PAIRS)]
    return Diagnostics(
        reference_of(objective),
        probe=batches.probe(rows[:PROBE_PAIRS]),
        bank=[batches.probe(part, captions_per_clip=each) for part in parts],
        geometry=PAIR_GEOMETRY,
        seed=seed,
        parts=parts_of(objective),
    )


def reference_of(objective: nn.Module) -> InfoNCE:
    """InfoNCE to compare an objective with; it shares modules with the objective.

    That which the objective is or wraps, further positives treated alike, so that the comparison shows what is around it;
    else InfoNCE that ignores them, at the temperature of the objective, or at a fixed 0.07 where there is none (triplet).
    """
    modules = list(objective.modules())
    for module in modules:
        if isinstance(module, InfoNCE):
            return module
    temperatures = [module for module in modules if isinstance(module, Temperature)]
    return InfoNCE(temperatures[0] if temperatures else Temperature(_TAU, "fixed"), "ignore")


def parts_of(objective: nn.Module) -> Parts | None:
    """The parts of an objective whose gradients are compared; they share modules with the objective.

    The base is the InfoNCE or SigLIP that the objective is or wraps, with every pair counted alike. SigLIP asks every pair
    once, it has no directions. An objective that holds neither of them has no parts.
    """
    base = next((module for module in objective.modules() if isinstance(module, InfoNCE | SigLIP)), None)
    if base is None:
        return None
    return Parts(
        base,
        directions=(PartOfDirection(base, "t2a"), PartOfDirection(base, "a2t")) if isinstance(base, InfoNCE) else None,
        added=None if objective is base else PartAdded(objective, base),
    )


class PartOfDirection(Part):
    """One direction of InfoNCE, as a loss.

    Args:
        base: both directions.
        name: ``t2a`` or ``a2t``.
    """

    def __init__(self, base: InfoNCE, name: str) -> None:
        super().__init__()
        self.base, self.name = base, name

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``."""
        with full_precision(audio, text) as (audio, text):
            scale = self.base.temperature.scale(index, progress, dtype=text.dtype)
            if needs_blocks(text):
                _, terms = self.base.both_in_blocks(text, audio, positives, scale)
            else:
                _, terms = self.base.both_directions(cosine(text, audio), positives, scale)
            return LossOutput(terms[self.name], {}, {})
