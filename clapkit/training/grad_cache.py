"""Embeddings of a batch without a graph, and the way back from their gradients into the encoder.

The loss needs the embeddings of all pairs at once, the encoder does not: it can be run on a few rows at a time, first to
embed them, then, when the gradients of the embeddings are known, once more to pass these on. What is kept in between are
embeddings and states of random generators. The gradient is that of the whole batch; the price is a second forward pass.

Reference: Gao et al., Scaling deep contrastive learning batch size under memory limited setup, 2021, arXiv 2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from clapkit.errors import ConfigError
from clapkit.training.batch_norm import statistics_kept
from clapkit.types import Batch

REPEATABLE = 0.05
"""Largest relative difference of an embedding between the two passes: above the rounding of bfloat16, below other draws."""


class Encoder(Protocol):
    """What the training needs of the dual encoder: the call for whole batches, the other two for chunks of them.

    Languages are given where the batch has them. Where ``features`` are asked for, what comes is not brought to unit norm.
    """

    def __call__(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Embed the clips and captions of a batch: audio [C, D] and text [B, D]."""
        ...

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Embed clips: [C, D]."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Embed captions: [B, D]."""
        ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """Embeddings of a batch.

    Attributes:
        audio: [C, D], without a graph; [C, W, D] where windows are kept apart.
        text: [B, D], likewise.
        variants: of the captions [B, V, D], likewise; None where the batch has none.
        backward: takes the gradients of audio, text and variants, None where there is none, and passes them on to the
            parameters of the encoder. Raises ConfigError if it has to embed rows again and they come out differently.
    """

    audio: Tensor
    text: Tensor
    variants: Tensor | None
    backward: Callable[..., None]


@dataclass(frozen=True, slots=True)
class Precision:
    """Where the encoder runs, and the autocast that it runs in; ``dtype`` None is none."""

    device: torch.device
    dtype: torch.dtype | None

    def __call__(self) -> torch.autocast:
        """A fresh autocast: one that is entered twice would hand out weights that were cast without a graph."""
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)


def call_encoder(encoder: Any, batch: Batch, device: torch.device, **form: Any) -> tuple[Tensor, Tensor]:
    """Embed a batch in one go.

    Args:
        encoder: see ``Encoder``.
        batch: C clips, B captions and their variants.
        device: of the encoder.
        form: further arguments of the encoder, which say in what form it gives embeddings.

    Returns:
        Audio [C, D], and text [B + B V, D], the captions before the variants.
    """
    languages = [_languages(batch)] if batch.languages else []
    captions = batch.captions + batch.variants
    audio, text = encoder(batch.waveform.to(device), batch.num_samples.to(device), captions, *languages, **form)
    return audio, text


def encode(encoder: Any, batch: Batch, *, precision: Precision, chunk: int | None = None, **form: Any) -> Encoding:
    """Embed a batch, to be followed by ``backward``.

    Args:
        encoder: in training mode, see ``Encoder``.
        batch: C clips and B captions.
        precision: of the encoder.
        chunk: rows that are encoded at a time; None for all, whose graph is then kept.
        form: further arguments of the encoder, which say in what form it gives embeddings.
    """
    if chunk is None:
        return _encode_whole(encoder, batch, precision, form)
    return _encode_in_chunks(encoder, batch, precision, form, chunk)


def _languages(batch: Batch) -> list[str]:
    """Languages of the captions and of the variants, which are in the language of their caption."""
    each = len(batch.variants) // max(1, len(batch.captions))
    return batch.languages + [language for language in batch.languages for _ in range(each)]


def _encode_whole(encoder: Any, batch: Batch, precision: Precision, form: Mapping[str, Any]) -> Encoding:
    with precision():
        embedded = call_encoder(encoder, batch, precision.device, **form)

    def backward(audio: Tensor | None, text: Tensor | None, variants: Tensor | None = None) -> None:
        gradients = (audio, _joined(text, variants, embedded[1]))
        ways = [(x, g) for x, g in zip(embedded, gradients, strict=True) if g is not None and x.requires_grad]
        if ways:
            torch.autograd.backward([x for x, _ in ways], [g for _, g in ways])

    return Encoding(embedded[0].detach(), *_parted(embedded[1].detach(), batch), backward)


def _parted(text: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Captions [B, D] and variants [B, V, D] of rows [B + B V, D] that hold both."""
    size = len(batch.captions)
    return text[:size], text[size:].view(size, -1, text.shape[1]) if batch.variants else None


def _joined(captions: Tensor | None, variants: Tensor | None, like: Tensor) -> Tensor | None:
    """The gradients of ``_parted`` put together again; where one of two is missing it is 0."""
    if captions is None and variants is None:
        return None
    joined = torch.zeros_like(like)
    if captions is not None:
        joined[: len(captions)] = captions
    if variants is not None:
        joined[len(variants) :] = variants.flatten(0, 1)  # one caption each
    return joined


def _encode_in_chunks(encoder: Any, batch: Batch, precision: Precision, form: Mapping[str, Any], chunk: int) -> Encoding:
    device, sentences, languages = precision.device, batch.captions + batch.variants, _languages(batch)

    def clips(rows: slice) -> Tensor:
        embedded: Tensor = encoder.encode_audio(batch.waveform[rows].to(device), batch.num_samples[rows].to(device), **form)
        return embedded

    def captions(rows: slice) -> Tensor:
        asked = [languages[rows]] if languages else []
        text_form = {key: value for key, value in form.items() if key != "keep_windows"}
        embedded: Tensor = encoder.encode_text(sentences[rows], *asked, **text_form)
        return embedded

    audio_side = _Side(clips, len(batch.waveform), chunk=chunk, precision=precision)
    text_side = _Side(captions, len(sentences), chunk=chunk, precision=precision)
    audio, text = audio_side.embed(), text_side.embed()

    def backward(audio_gradient: Tensor | None, text_gradient: Tensor | None, variant_gradient: Tensor | None = None) -> None:
        after = _generators(device)
        with statistics_kept(encoder):
            audio_side.backward(audio_gradient)
            text_side.backward(_joined(text_gradient, variant_gradient, text))
        _set_generators(after, device)  # as if nothing had been drawn twice

    return Encoding(audio, *_parted(text, batch), backward)


class _Side:
    """The clips, or the captions, of a batch, encoded some rows at a time.

    Args:
        encode: gives the embeddings of some rows.
        num_rows: of the batch.
        chunk: most rows at a time; they are shared out evenly, so that none is left over alone.
        precision: of the encoder.
    """

    def __init__(self, encode: Callable[[slice], Tensor], num_rows: int, *, chunk: int, precision: Precision) -> None:
        self._encode, self._precision = encode, precision
        num_chunks = -(-num_rows // chunk)
        ends = [num_rows * number // num_chunks for number in range(num_chunks + 1)]
        self._rows = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
        self._states: list[list[Tensor]] = []
        self._parts: list[Tensor] = []

    @torch.no_grad()
    def embed(self) -> Tensor:
        """Embed all rows without a graph, and remember what was drawn on the way: [N, D]."""
        for rows in self._rows:
            self._states.append(_generators(self._precision.device))
            with self._precision():
                self._parts.append(self._encode(rows))
        return torch.cat(self._parts)

    def backward(self, gradient: Tensor | None) -> None:
        """Encode all rows once more, with the same draws, and pass on their gradients [N, D]."""
        if gradient is None:
            return
        differences = []
        for rows, state, first in zip(self._rows, self._states, self._parts, strict=True):
            _set_generators(state, self._precision.device)
            with self._precision():
                embedded = self._encode(rows)
            differences.append(_largest_difference(embedded.detach(), first))
            if embedded.requires_grad:
                torch.autograd.backward(embedded, gradient[rows])
        difference = float(torch.stack(differences).max())  # read once: it stalls a GPU
        if difference > REPEATABLE:
            raise ConfigError(
                f"--grad-cache-chunk: embeddings of the second pass differ from those of the first by {difference:.0%}, so "
                "that their gradients would be wrong; a tower draws outside torch's generators: leave --grad-cache-chunk out"
            )


def _largest_difference(embedded: Tensor, first: Tensor) -> Tensor:
    """Largest distance of two embeddings [n, D] and [n, D] of a row, as a share of its length: a scalar."""
    embedded, first = embedded.flatten(1), first.flatten(1)  # windows of a clip count as one vector
    largest: Tensor = ((embedded - first).norm(dim=1) / first.norm(dim=1)).max()
    return largest


def _generators(device: torch.device) -> list[Tensor]:
    """States of torch's generators of the processor and of a GPU."""
    if device.type == "cuda":
        return [torch.get_rng_state(), torch.cuda.get_rng_state(device)]
    return [torch.get_rng_state(), *([torch.mps.get_rng_state()] if device.type == "mps" else [])]


def _set_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])
