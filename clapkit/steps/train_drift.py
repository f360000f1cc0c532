"""What the drift measurements of a run are made with: an InfoNCE to compare with, and fixed pairs of the training set."""

from __future__ import annotations

import numpy as np
from torch import nn

from clapkit.data.dataset import TrainingBatches
from clapkit.metrics.geometry import PAIR_GEOMETRY
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.temperature import Temperature
from clapkit.training.diagnostics import Diagnostics

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
