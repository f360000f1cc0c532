"""Layers of the built-in text towers and of the heads, in NumPy float32 and without dropout.

Weights are those of a torch ``state_dict``, by name. States are [B, L, width]: a product of such a stack with a matrix is one
product for each sentence, so that no sentence depends on how many others are in the batch, not even in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Weights = Mapping[str, FloatArray]

# As torch sets it where nothing else is said.
LAYER_NORM_EPSILON = 1e-5

# The error function at the knots n / 64 up to 4, where float32 cannot tell it from 1, and its slope there. Between them, three
# terms of its Taylor series are off by (1/128)^4 / 24 * max |erf''''| < 1e-9 (|erf''''| < 6).
_KNOTS_PER_UNIT, _LAST_KNOT = 64, 4.0
_KNOTS = np.arange(_LAST_KNOT * _KNOTS_PER_UNIT + 1) / _KNOTS_PER_UNIT
_ERF = np.array([math.erf(knot) for knot in _KNOTS]).astype(np.float32)
_SLOPE = (2 / math.sqrt(math.pi) * np.exp(-(_KNOTS**2))).astype(np.float32)


def linear(weights: Weights, name: str, states: FloatArray) -> FloatArray:
    """``nn.Linear``: [B, L, inputs] to [B, L, outputs]."""
    mapped: FloatArray = states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return mapped


def layer_norm(weights: Weights, name: str, states: FloatArray) -> FloatArray:
    """``nn.LayerNorm`` over the last axis."""
    centred = states - states.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    normed: FloatArray = centred / np.sqrt(variance + np.float32(LAYER_NORM_EPSILON))
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def erf(x: FloatArray) -> FloatArray:
    """The error function, which NumPy does not have; float32, off by less than 2e-7."""
    size = np.minimum(np.abs(x), np.float32(_LAST_KNOT))
    nearest = np.rint(size * _KNOTS_PER_UNIT)
    # Clipped, because NaN becomes any number here; the result is NaN all the same, for the step is.
    knot = np.clip(nearest.astype(np.int32), 0, len(_KNOTS) - 1)
    place = nearest / np.float32(_KNOTS_PER_UNIT)
    step = size - place
    # erf'' = -2 x erf' and erf''' = (4 x^2 - 2) erf', so that the slope is a common factor.
    curve = step * (1 - step * (place - step * (2 * place * place - 1) / 3))
    signed: FloatArray = np.copysign(_ERF[knot] + _SLOPE[knot] * curve, x)
    return signed


def gelu(x: FloatArray) -> FloatArray:
    """``nn.GELU``, the exact one."""
    return x * np.float32(0.5) * (1 + erf(x * np.float32(math.sqrt(0.5))))


def sigmoid(x: FloatArray) -> FloatArray:
    """Logistic function; through the hyperbolic tangent, because an exponential of large numbers overflows."""
    half = np.float32(0.5)
    share: FloatArray = half + half * np.tanh(half * x)
    return share


def self_attention(weights: Weights, name: str, states: FloatArray, *, num_heads: int) -> FloatArray:
    """Attention of L tokens to each other, all of them real: [B, L, width] to the same shape.

    Args:
        weights: with ``<name>.query_key_value`` and ``<name>.attention_out``.
        name: of the layer.
        states: normed, [B, L, width].
        num_heads: heads, side by side in ``width``.
    """
    batch, length, width = states.shape
    parts = linear(weights, f"{name}.query_key_value", states).reshape(batch, length, 3, num_heads, -1)
    query, key, value = parts.transpose(2, 0, 3, 1, 4)  # each [B, heads, L, width / heads]
    scores = query @ key.swapaxes(-1, -2) / np.float32(math.sqrt(width // num_heads))  # [B, heads, L, L]
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    attended = (shares @ value).swapaxes(1, 2).reshape(batch, length, width)
    return linear(weights, f"{name}.attention_out", attended)


def transformer_layer(weights: Weights, name: str, states: FloatArray, *, num_heads: int) -> FloatArray:
    """Pre-norm self-attention and feed-forward, as ``TransformerLayer`` does them: [B, L, width] to the same shape."""
    normed = layer_norm(weights, f"{name}.attention_norm", states)
    states = states + self_attention(weights, name, normed, num_heads=num_heads)
    hidden = gelu(linear(weights, f"{name}.feed_forward.1", layer_norm(weights, f"{name}.feed_forward.0", states)))
    return states + linear(weights, f"{name}.feed_forward.3", hidden)


def gru(weights: Weights, name: str, inputs: FloatArray, *, backward: bool) -> FloatArray:
    """One direction of ``nn.GRU``: [B, L, inputs] to [B, L, width], the states in the order of the tokens.

    Args:
        weights: with ``<name>.weight_ih_l0`` and so on; gates in the order reset, update, new.
        name: of the layer.
        inputs: all of them real, [B, L, inputs].
        backward: from the last token to the first, with the weights that end in ``_reverse``.
    """
    suffix = "_l0_reverse" if backward else "_l0"
    recurrent, bias = weights[f"{name}.weight_hh{suffix}"].T, weights[f"{name}.bias_hh{suffix}"]
    given = inputs @ weights[f"{name}.weight_ih{suffix}"].T + weights[f"{name}.bias_ih{suffix}"]  # [B, L, 3 width]
    batch, length, width = len(inputs), inputs.shape[1], len(recurrent)
    states = np.empty((batch, length, width), dtype=np.float32)
    state = np.zeros((batch, 1, width), dtype=np.float32)
    for place in reversed(range(length)) if backward else range(length):
        reset_in, update_in, new_in = np.split(given[:, place : place + 1], 3, axis=-1)
        reset_own, update_own, new_own = np.split(state @ recurrent + bias, 3, axis=-1)
        update = sigmoid(update_in + update_own)
        new = np.tanh(new_in + sigmoid(reset_in + reset_own) * new_own)
        state = (1 - update) * new + update * state
        states[:, place] = state[:, 0]
    return states
