"""SogCLR, stochastic optimisation of the global contrastive loss: small batches with a memory of their negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clapkit.errors import ConfigError
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.individual_temperature import IndividualTemperatures, check_budget
from clapkit.objectives.infonce import DEFAULT_TAU
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives
from clapkit.objectives.temperature import Temperature
from clapkit.types import LossOutput


def build(
    *,
    gamma: float = 0.8,
    tau: float = DEFAULT_TAU,
    individual: bool = False,
    rho: float | None = None,
    tau_min: float = 0.01,
    tau_max: float = 1.0,
    tau_lr: float = 0.01,
    tau_momentum: float = 0.9,
    num_rows: int | None = None,
    batch_size: int | None = None,
) -> SogCLR:
    """Make the objective.

    Args:
        gamma: how much of an anchor's normaliser is that of the present batch; 1 forgets all others.
        tau: the temperature; with ``individual`` that at the start.
        individual: a temperature for every training row and side (iSogCLR).
        rho: with ``individual``, the budget: a temperature rests where the softmax over the negatives has this divergence from
            an even one, nats; 0.4 times the largest possible, ln(number of negatives).
        tau_min: lowest individual temperature.
        tau_max: highest individual temperature.
        tau_lr: step size of individual temperatures.
        tau_momentum: share of the present gradient in the one that temperatures follow.
        num_rows: rows of the training set; from ``clapkit train``.
        batch_size: to refuse a budget that no batch reaches; from ``clapkit train``.

    Raises:
        ConfigError: if an option is out of its range, has no meaning beside the others, or ``num_rows`` is missing.
    """
    require(0 < gamma <= 1, f"gamma={gamma}: expected a share above 0 and up to 1, for example 0.8")
    if num_rows is None:
        raise ConfigError("sogclr: it keeps a number for every training row; clapkit train says how many, else pass num_rows")
    temperature = Temperature(tau, "fixed")
    if not individual:
        given = {"rho": (rho, None), "tau_min": (tau_min, 0.01), "tau_max": (tau_max, 1.0)}
        given |= {"tau_lr": (tau_lr, 0.01), "tau_momentum": (tau_momentum, 0.9)}
        for name, (value, default) in given.items():
            require(value == default, f"{name}={value}: there is one temperature for all; set individual=true or leave it out")
        return SogCLR(num_rows, gamma, temperature, None)
    require(0 < tau_min <= tau <= tau_max, f"tau={tau}: expected {tau_min} to {tau_max}, which are tau_min and tau_max")
    require(tau_max < math.inf, f"tau_max={tau_max}: expected a finite temperature, for example 1")
    require(0 <= tau_lr < math.inf, f"tau_lr={tau_lr}: expected a step size of 0 or more")
    require(0 < tau_momentum <= 1, f"tau_momentum={tau_momentum}: expected a share above 0 and up to 1")
    if batch_size is not None:
        check_budget(rho, batch_size)
    return SogCLR(
        num_rows, gamma, temperature, IndividualTemperatures(num_rows, tau, rho, tau_min, tau_max, tau_lr, tau_momentum)
    )


class SogCLR(nn.Module):
    """The contrastive loss of anchors against the whole training set, from batches and a memory.

    With ``h_ij = s_ij - s_ii``, anchor i has ``F_i = tau_i log mean_{j} exp(h_ij / tau_i)``, the mean over all negatives of the
    training set. Its estimate from a batch, ``g_i``, is averaged over the visits of the row,
    ``u_i <- (1 - gamma) u_i + gamma g_i``, and the gradient is ``mean_j w_ij dh_ij`` with the constant
    ``w_ij = exp(h_ij / tau_i) / u_i``. The loss is the mean of ``tau_i log u_i`` over anchors and both directions, plus
    ``rho tau_i`` with individual temperatures. Forward gives its value; its gradient is that of the surrogate
    ``mean_j w_ij h_ij``, whose value says nothing.

    The memory holds ``log u_i``, of every training row and side, so that nothing overflows at low temperatures; it is written
    after the step, so that a batch can be scored any number of times. A row that was not seen has ``u_i = g_i``. Positives off
    the diagonal are no negatives; a row without negatives counts 0.

    Reference: Yuan et al., SogCLR, 2022, arXiv 2202.12387; individual temperatures: Qiu et al., iSogCLR, 2023,
    arXiv 2305.11965. Deviation: the memory of a clip is shared by its captions.

    Args:
        num_rows: of the training set.
        gamma: share of the present batch.
        temperature: of all anchors, where they have none of their own.
        individual: temperatures of their own.
    """

    log_normaliser: Tensor

    def __init__(
        self, num_rows: int, gamma: float, temperature: Temperature, individual: IndividualTemperatures | None
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.temperature = temperature if individual is None else None
        self.individual = individual
        self.register_buffer("log_normaliser", torch.full((2, num_rows), -math.inf))  # texts, clips
        self._updates: list[tuple[int, Tensor, dict[str, Tensor]]] = []  # side, rows, buffer -> values

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
            ConfigError: if the batch is too small for the budget of individual temperatures.
        """
        check_batch(audio, text, positives, index)
        if self.individual is not None:
            check_budget(self.individual.rho, len(index))
        with full_precision(audio, text) as (audio, text):
            similarity = cosine(text, audio)  # [B, B], rows are texts
            text_to_audio, text_surrogate = self.one_direction(similarity, positives, index, side=0)
            audio_to_text, audio_surrogate = self.one_direction(similarity.T, positives.T, index, side=1)
            surrogate = (text_surrogate + audio_surrogate) / 2
            # The value of the loss with the gradient of the surrogate.
            total = (text_to_audio + audio_to_text) / 2 + (surrogate - surrogate.detach())
            stats = self.stats(index, progress) | {"positive_cosine": similarity.diagonal().mean()}
            return loss_output(total, {"t2a": text_to_audio, "a2t": audio_to_text}, stats)

    def one_direction(self, similarity: Tensor, positives: Tensor, index: Tensor, *, side: int) -> tuple[Tensor, Tensor]:
        """The loss of one direction, and notes what to remember.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal.
            positives: bool [B, B], likewise.
            index: int64 [B], training rows.
            side: of the anchors, 0 for texts and 1 for clips.

        Returns:
            The loss, without gradient, and its surrogate: two scalars.
        """
        excluded = no_negatives(positives)
        num_negatives = (~excluded).sum(dim=1).to(similarity.dtype)  # [B]
        has_negatives = num_negatives > 0
        tau = self.tau(index, side, like=similarity)  # [B]
        difference = similarity - similarity.diagonal()[:, None]  # [B, B]
        logits = (difference.detach() / tau[:, None]).masked_fill(excluded, -math.inf)
        seen = logits.logsumexp(dim=1) - num_negatives.clamp(min=1).log()  # [B], log g
        log_normaliser = torch.where(has_negatives, self.averaged(seen, index, side), 0.0)  # [B], log u
        weights = (logits - log_normaliser[:, None]).exp() / num_negatives.clamp(min=1)[:, None]  # [B, B], 0 at positives
        pushes = (weights * difference).sum(dim=1)  # [B]
        loss = torch.where(has_negatives, tau * log_normaliser, 0.0)  # [B]
        memories = {"log_normaliser": log_normaliser}
        if self.individual is not None:
            slack = self.individual.slack(log_normaliser, pushes.detach() / tau, num_negatives)
            memories |= {f"individual.{name}": values for name, values in self.individual.moved(slack, index, side).items()}
            loss = loss + torch.where(has_negatives, self.individual.budget(num_negatives, like=tau) * tau, 0.0)
        self._remember(side, index, has_negatives, memories)
        return loss.mean(), pushes.mean()

    def tau(self, index: Tensor, side: int, *, like: Tensor) -> Tensor:
        """The temperature of each anchor, [B]."""
        if self.individual is not None:
            return self.individual.tau[side, index].to(like.dtype)
        assert self.temperature is not None
        return torch.full_like(like[:, 0], self.temperature.tau)

    def averaged(self, seen: Tensor, index: Tensor, side: int) -> Tensor:
        """``log u`` of the anchors after a batch in which they have ``log g`` = ``seen`` [B]."""
        before = self.log_normaliser[side, index].to(seen.dtype)  # [B]
        kept = before + math.log1p(-self.gamma) if self.gamma < 1 else torch.full_like(before, -math.inf)
        return torch.where(before > -math.inf, torch.logaddexp(kept, seen + math.log(self.gamma)), seen)

    def stats(self, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """The temperature, with individual ones their mean and their smallest and largest in the batch."""
        if self.individual is None:
            assert self.temperature is not None
            return self.temperature.stats(index, progress)
        values = self.individual.tau[:, index]  # [2, B]
        return {"temperature": values.mean(), "temperature_min": values.min(), "temperature_max": values.max()}

    def _remember(self, side: int, index: Tensor, rows: Tensor, memories: dict[str, Tensor]) -> None:
        """Note what the anchors at ``rows``, bool [B], will write after the step."""
        if self.training and torch.is_grad_enabled():
            self._updates.append((side, index[rows], {name: values.detach()[rows] for name, values in memories.items()}))

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Nothing for the optimiser: individual temperatures have a rule of their own."""
        return []

    def after_step(self) -> None:
        """Write down what the batches of the step have shown."""
        for side, index, memories in self._updates:
            for name, values in memories.items():
                memory = self.get_buffer(name)
                # A row that is in a batch more than once gets the mean.
                memory[side].scatter_reduce_(0, index, values.to(memory.dtype), "mean", include_self=False)
        self._updates.clear()
