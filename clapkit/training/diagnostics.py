"""Drift: does a step move the texts towards their clips, or past them?

The force on a text is minus the gradient of the loss with respect to its embedding, as far as it is tangent to the sphere on
which unit-norm embeddings live. It has a part along the pull, the tangent direction to the own clip, and a part across it,
which is the drift. Every number is given twice, for the objective of the run and for an InfoNCE reference on the very same
embeddings, so that what the objective does can be told from what training in general does.

Everything works on copies: weights, optimiser and torch's generators are the same with and without a measurement.

Reference: SupCLAP, arXiv 2509.21033, plots drift without a recipe that we could find; these definitions are ours
(docs/diagnostics.md).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from clapkit.errors import ConfigError
from clapkit.training import checkpoint
from clapkit.training.grad_cache import call_encoder
from clapkit.training.gradient_agreement import NEGLIGIBLE, Parts, gradient_agreement, gradients_of
from clapkit.types import Batch

Geometry = Callable[[Tensor, Tensor], float]
Rehearse = Callable[[nn.Module], nn.Module]
"""Takes the step at hand with an objective, on copies; gives the encoder that it would lead to, and in it its gradient."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """B embedded pairs, on their device, without a graph.

    Attributes:
        audio: [B, D].
        text: [B, D].
        positives: bool [B, B].
        index: int64 [B].
    """

    audio: Tensor
    text: Tensor
    positives: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def at(self, rows: Tensor) -> Pairs:
        """The pairs of some rows [n]."""
        rows = rows.to(self.index.device)
        return Pairs(self.audio[rows], self.text[rows], self.positives[rows][:, rows], self.index[rows])


class Diagnostics:
    """Measures drift, geometry and agreement of gradients of a run without changing it.

    Args:
        reference: InfoNCE at the temperature of the run, with the interface of an objective. It may share its temperature
            module with the objective.
        probe: fixed training pairs, re-embedded around a step.
        bank: fixed training pairs, at least a batch of them; stands for the whole training set.
        geometry: name -> function of the audio and text embeddings [N, D] of the bank, on the processor.
        num_draws: how often the bank is shuffled into random batches.
        seed: of the shuffles, which are the same at every measurement.
        parts: of the objective, whose gradients are compared; None for none.

    Raises:
        ConfigError: if there is nothing to draw from, or no draw.
    """

    def __init__(
        self,
        reference: nn.Module,
        *,
        probe: Batch,
        bank: Sequence[Batch],
        geometry: Mapping[str, Geometry],
        num_draws: int = 8,
        seed: int = 0,
        parts: Parts | None = None,
    ) -> None:
        if not bank or num_draws < 1:
            raise ConfigError(f"diagnostics: {len(bank)} bank batches and num_draws={num_draws}; expected 1 or more of both")
        self.reference, self.probe, self.bank = reference, probe, bank
        self.geometry, self.num_draws, self.seed, self.parts = geometry, num_draws, seed, parts

    def measure(
        self,
        encoder: nn.Module,
        objective: nn.Module,
        *,
        batch: Batch,
        progress: float,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        rehearse: Rehearse,
    ) -> dict[str, float]:
        """Measure before a step is taken.

        Args:
            encoder: of the run, in training mode.
            objective: of the run.
            batch: of the step.
            progress: of the step.
            device: of the modules.
            autocast_dtype: in which the step runs the encoder; None for float32.
            rehearse: takes the step on copies.

        Returns:
            A flat record; a number that no row has is left out.

        Raises:
            ConfigError: if the bank is smaller than the batch.
        """
        started = time.perf_counter()
        generators = checkpoint.generator_state()

        def take_step(loss: nn.Module) -> nn.Module:
            checkpoint.restore_generators(generators)
            return rehearse(loss)

        try:
            seen = copy.deepcopy(encoder).eval()
            bank = embed_bank(seen, self.bank, device)
            before = embed(seen, self.probe, device)
            # As the step will see them: same mode, same dropout, same precision.
            checkpoint.restore_generators(generators)
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                pairs = embed(seen.train(encoder.training), batch, device)
            del seen
            values: dict[str, Tensor] = {}
            for prefix, loss in (("", objective), ("infonce_", self.reference)):
                checkpoint.restore_generators(generators)
                numbers = self._forces(loss, pairs, bank, progress)
                stepped = take_step(loss)
                known = {loss: gradients_of(stepped)}  # in the end those of the reference, which often is a part
                numbers["step_cos"] = step_cosines(before, embed(stepped.eval(), self.probe, device))
                values |= {prefix + name: number for name, number in numbers.items()}
            del stepped
            agreement = gradient_agreement(self.parts, batch.languages, take_step=take_step, known=known)
            values["infonce_force_cos_bank"] = pull_cosines(forces(copy.deepcopy(self.reference), bank, progress), bank)
        finally:
            checkpoint.restore_generators(generators)
        audio, text = bank.audio.cpu(), bank.text.cpu()
        geometry = {name: float(function(audio, text)) for name, function in self.geometry.items()}
        return summarize(values) | agreement | geometry | {"drift_seconds": time.perf_counter() - started}

    def _forces(self, objective: nn.Module, pairs: Pairs, bank: Pairs, progress: float) -> dict[str, Tensor]:
        """What the forces of one objective are like: name -> one value per row."""
        objective = copy.deepcopy(objective)  # it may keep a memory of what it sees
        local = forces(objective, pairs, progress)
        orders = shuffles(len(bank), num_draws=self.num_draws, seed=self.seed)
        drawn = torch.stack([forces_in_batches(objective, bank, order, len(pairs), progress) for order in orders])  # [K, N, D]
        ratios = torch.stack([perpendicular_ratios(force, bank) for force in drawn])  # [K, N]
        return {
            "force_cos_local": pull_cosines(local, pairs),
            "force_cos_global": pull_cosines(drawn.mean(dim=0), bank),
            "perp_ratio": ratios.mean(dim=0),
            "perp_ratio_variance": ratios.var(dim=0, unbiased=False),
        }


@torch.no_grad()
def embed(encoder: nn.Module, batch: Batch, device: torch.device) -> Pairs:
    """Embed a batch in the mode that the encoder is in."""
    audio, text = call_encoder(encoder, batch, device)  # [C, D] and [B, D]
    audio = audio[batch.audio_row.to(device)]  # [B, D]
    # Objectives go to float32 themselves; doing it here keeps the rounding of half precision out of the gradients.
    dtype = torch.promote_types(text.dtype, torch.float32)
    return Pairs(audio.to(dtype), text.to(dtype), batch.positives().to(device), batch.index.to(device))


def embed_bank(encoder: nn.Module, bank: Sequence[Batch], device: torch.device) -> Pairs:
    """Embed several batches as one set of N pairs, with the positives among all of them."""
    parts = [embed(encoder, batch, device) for batch in bank]
    text_keys, clip_keys = _joined_keys([b.text_keys for b in bank]), _joined_keys([b.clip_keys for b in bank])
    return Pairs(
        torch.cat([part.audio for part in parts]),
        torch.cat([part.text for part in parts]),
        replace(bank[0], text_keys=text_keys, clip_keys=clip_keys).positives().to(device),
        torch.cat([part.index for part in parts]),
    )


def _joined_keys(keys: list[Tensor]) -> Tensor:
    """Keys of several batches, [B, K] each, in one table; padded with 0 to the widest."""
    width = max(table.shape[1] for table in keys)
    return torch.cat([pad(table, (0, width - table.shape[1])) for table in keys])  # [N, K]


def shuffles(num_rows: int, *, num_draws: int, seed: int) -> Iterator[Tensor]:
    """Random orders of the rows, int64 [num_rows] each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_draws):
        yield torch.randperm(num_rows, generator=generator)


def forces(objective: nn.Module, pairs: Pairs, progress: float) -> Tensor:
    """The tangent force on every text, ``-(I - t t^T) dL/dt``: float64 [B, D] on the processor.

    The gradient is that of the whole objective, both directions, with audio and texts as leaves. A force that is rounding
    only is exactly 0.
    """
    text = pairs.text.clone().requires_grad_()
    with torch.enable_grad():
        total = objective(pairs.audio, text, pairs.positives, pairs.index, progress).total
        (gradient,) = torch.autograd.grad(total, text)  # [B, D]
    gradient = gradient.cpu().double()
    force = -tangent(gradient, at=pairs.text.cpu().double())  # [B, D]
    is_rounding = force.norm(dim=1) <= NEGLIGIBLE * gradient.norm(dim=1)
    return force.masked_fill(is_rounding[:, None], 0.0)


def forces_in_batches(objective: nn.Module, bank: Pairs, order: Tensor, batch_size: int, progress: float) -> Tensor:
    """The force on every text of the bank, each from the one random batch that it falls into: float64 [N, D].

    Batches of ``batch_size`` pairs, neither more nor fewer, are cut from the front of ``order``, a permutation of the rows [N].

    Raises:
        ConfigError: if N < B.
    """
    if len(bank) < batch_size:
        raise ConfigError(f"diagnostics: the bank has {len(bank)} pairs, expected at least a batch of {batch_size}; enlarge it")
    collected = torch.zeros(bank.text.shape, dtype=torch.float64)  # [N, D]
    for start in range(0, len(bank), batch_size):
        rows = order[start : start + batch_size]
        # The last batch is filled up with rows that were anchors before: the adaptive radius needs exactly B.
        filled = torch.cat([rows, order[: batch_size - len(rows)]])
        collected[rows] = forces(objective, bank.at(filled), progress)[: len(rows)]
    return collected


def pull_cosines(force: Tensor, pairs: Pairs) -> Tensor:
    """Cosine between each force [B, D] and the pull, the tangent direction to the own clip; NaN where one is 0."""
    return cosines(force, pull(pairs))


def perpendicular_ratios(force: Tensor, pairs: Pairs) -> Tensor:
    """Length of each force [B, D] across the pull / along it; NaN where there is no pull or nothing along it."""
    toward = pull(pairs)
    direction = toward / toward.norm(dim=1, keepdim=True)  # NaN where the pull is 0
    along = (force * direction).sum(dim=1, keepdim=True)  # [B, 1]
    across = (force - along * direction).norm(dim=1)  # [B]
    along = along.abs().squeeze(1)
    return torch.where(along > NEGLIGIBLE * force.norm(dim=1), across / along, torch.nan)


def step_cosines(before: Pairs, after: Pairs) -> Tensor:
    """Cosine between how each text moved and where its clip was, ``cos(t' - t, a - t)``: [B], NaN where one is 0."""
    text = before.text.cpu().double()
    return cosines(_settled(after.text.cpu().double() - text), _settled(before.audio.cpu().double() - text))


def pull(pairs: Pairs) -> Tensor:
    """``(I - t t^T) a``, float64 [B, D]: 0 where the pair coincides (or is antipodal) and no direction leads to the clip."""
    return _settled(tangent(pairs.audio.cpu().double(), at=pairs.text.cpu().double()))


def tangent(vectors: Tensor, *, at: Tensor) -> Tensor:
    """The part of vectors [B, D] that is tangent to the sphere at unit vectors ``at`` [B, D]."""
    return vectors - (vectors * at).sum(dim=1, keepdim=True) * at


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise cosine of [B, D] and [B, D]: [B], NaN where a row is 0."""
    cosine: Tensor = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    return cosine


def _settled(vectors: Tensor) -> Tensor:
    """Differences of embeddings [B, D], with those that are rounding only set to 0."""
    return vectors.masked_fill((vectors.norm(dim=1) <= NEGLIGIBLE)[:, None], 0.0)


def summarize(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Every number over the rows that have it, with its outer deciles, and how many values are missing.

    Cosines are averaged. Ratios have no useful mean, because a few rows have almost nothing along the pull: of them the
    median is taken.
    """
    record: dict[str, float] = {}
    left_out = 0
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for name, rows in values.items():
        kept = rows[rows.isfinite()]
        left_out += len(rows) - len(kept)
        if len(kept):
            low, median, high = kept.quantile(levels).tolist()
            middle = median if "ratio" in name else float(kept.mean())
            record |= {name: middle, f"{name}_q10": low, f"{name}_q90": high}
    return record | {"drift_rows_left_out": left_out}
