"""HTSAT as LAION-CLAP and msclap store it: its tensors under the names of transformers, and what their shapes tell.

Both projects compute the spectrogram inside the network with torchlibrosa, so a checkpoint holds the filters that it was
trained with, and they are compared with those that the front end will use.

Reference: Chen et al., HTS-AT, 2022, arXiv 2202.00874.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clapkit.encoders._originals import count_below, shape_of
from clapkit.encoders.spectrograms import mel_filter_bank
from clapkit.errors import CheckpointError

# Side of the square that the spectrogram is folded into; the same in all published models, and in no tensor that is needed.
SPECTROGRAM_SIDE = 256
PREFIX = "audio_tower.model.audio_encoder."
STFT, MEL = "spectrogram_extractor.stft.conv_real.weight", "logmel_extractor.melW"
FUSION = ("mel_conv1d", "mel_conv2d", "fusion_model")


@dataclass(frozen=True, slots=True)
class Filters:
    """Mel filters as librosa makes them.

    Attributes:
        sample_rate: Hz that they are made for; that of the waveforms may be another.
        f_min: lower edge of the lowest one, Hz.
        f_max: upper edge of the highest one, Hz.
    """

    sample_rate: int
    f_min: float
    f_max: float

    def __str__(self) -> str:
        """For messages."""
        return f"{self.f_min} to {self.f_max} Hz at {self.sample_rate} Hz"


BLOCK, OURS = r"layers\.(\d+)\.blocks\.(\d+)\.", r"layers.\1.blocks.\2."
WEIGHT = r"\.(weight|bias)"
RULES = {
    r"bn0\.(weight|bias|running_mean|running_var|num_batches_tracked)": r"batch_norm.\1",
    r"patch_embed\.(proj|norm)" + WEIGHT: r"patch_embed.\1.\2",
    r"norm" + WEIGHT: r"norm.\1",
    r"layers\.(\d+)\.downsample\.(reduction\.weight|norm\.weight|norm\.bias)": r"layers.\1.downsample.\2",
    BLOCK + "norm1" + WEIGHT: OURS + r"layernorm_before.\3",
    BLOCK + "norm2" + WEIGHT: OURS + r"layernorm_after.\3",
    BLOCK + r"attn\.relative_position_bias_table": OURS + "attention.self.relative_position_bias_table",
    BLOCK + r"attn\.qkv" + WEIGHT: OURS + r"attention.self.qkv.\3",
    BLOCK + r"attn\.proj" + WEIGHT: OURS + r"attention.output.dense.\3",
    BLOCK + r"mlp\.fc1" + WEIGHT: OURS + r"intermediate.dense.\3",
    BLOCK + r"mlp\.fc2" + WEIGHT: OURS + r"output.dense.\3",
}
# Spectrogram (computed by the front end), masks and indices (computed from the sizes), classifier of AudioSet.
UNUSED = (
    r"spectrogram_extractor\.stft\.conv_(real|imag)\.weight",
    r"logmel_extractor\.melW",
    BLOCK + r"(attn_mask|attn\.relative_position_index)",
    r"(tscam_conv|head)" + WEIGHT,
)


def rules(prefix: str) -> dict[str, str]:
    """Patterns of names below a prefix -> names in a dual encoder."""
    return {re.escape(prefix) + pattern: PREFIX + ours for pattern, ours in RULES.items()}


def unused(prefix: str) -> tuple[str, ...]:
    """Patterns of names below a prefix that are not needed."""
    return tuple(re.escape(prefix) + pattern for pattern in UNUSED)


def split_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut the joint projections of attention into query, key and value, which transformers keeps apart."""
    parted = dict[str, Tensor]()
    for name, tensor in tensors.items():
        if ".attention.self.qkv." in name and tensor.dim() > 0:
            parts = zip(("query", "key", "value"), tensor.tensor_split(3), strict=True)
            parted |= {name.replace(".qkv.", f".{part}."): piece for part, piece in parts}
        else:
            parted[name] = tensor
    return parted


def is_fused(state: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether the model fuses several views of a long clip."""
    patches = state.get(f"{prefix}patch_embed.proj.weight")
    return any(part in name for name in state for part in FUSION) or (patches is not None and patches.shape[1:2] == (4,))


def read_config(state: Mapping[str, Tensor], prefix: str, *, origin: str) -> dict[str, Any]:
    """The configuration of transformers that fits the tensors.

    Raises:
        CheckpointError: if a tensor that tells a size is missing, or the sizes are none of an HTSAT.
    """
    width, _, patch, _ = shape_of(state, f"{prefix}patch_embed.proj.weight", 4, origin=origin)
    stages = count_below(state, f"{prefix}layers.")
    tables = [f"{prefix}layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(stages)]
    sizes = [shape_of(state, table, 2, origin=origin) for table in tables]
    if not sizes or any(width * 2**stage % heads for stage, (_, heads) in enumerate(sizes)):
        raise CheckpointError(
            f"{origin}: its audio branch has {stages} stages of {[heads for _, heads in sizes]} heads from width {width}, "
            "which is no HTSAT; name a checkpoint as its authors published it"
        )
    hidden, _ = shape_of(state, f"{prefix}layers.0.blocks.0.mlp.fc1.weight", 2, origin=origin)
    return {
        "model_type": "clap_audio_model",
        "spec_size": SPECTROGRAM_SIDE,
        "num_mel_bins": shape_of(state, f"{prefix}bn0.weight", 1, origin=origin)[0],
        "patch_size": patch,
        "patch_stride": [patch, patch],
        "patch_embeds_hidden_size": width,
        "hidden_size": width * 2 ** (stages - 1),
        "depths": [count_below(state, f"{prefix}layers.{stage}.blocks.") for stage in range(stages)],
        "num_attention_heads": [heads for _, heads in sizes],
        "num_hidden_layers": stages,
        # A table has an entry for every offset in a window, (2 w - 1)^2 of them.
        "window_size": (math.isqrt(sizes[0][0]) + 1) // 2,
        "mlp_ratio": hidden / width,
        "enable_fusion": False,
    }


def read_front_end(
    state: Mapping[str, Tensor],
    prefix: str,
    *,
    sample_rate: int,
    hop: int,
    filters: Sequence[Filters],
    length_s: float,
    fill: str,
    origin: str,
) -> dict[str, Any]:
    """The content of ``preprocessor_config.json`` that computes what the checkpoint was trained on.

    Args:
        state: tensors of the checkpoint.
        prefix: before the names of HTSAT.
        sample_rate: of the waveforms, Hz.
        hop: step between frames, samples.
        filters: that it may have been trained with.
        length_s: seconds that the model hears at a time.
        fill: how shorter clips are brought to that length.
        origin: where the tensors are from, for messages.

    Raises:
        CheckpointError: if the filters in the checkpoint are none of those.
    """
    window = shape_of(state, prefix + STFT, 3, origin=origin)[2]
    num_mels = shape_of(state, prefix + MEL, 2, origin=origin)[1]
    used = next((known for known in filters if _are(state[prefix + MEL], known, window)), None)
    if used is None:
        raise CheckpointError(
            f"{origin}: its mel filters are not {' or '.join(map(str, filters))}, so its front end is not known; "
            "name a checkpoint as its authors published it"
        )
    numbers: dict[str, Any] = {
        "feature_extractor_type": "ClapFeatureExtractor",
        "sampling_rate": sample_rate,
        "feature_size": num_mels,
        "fft_window_size": window,
        "hop_length": hop,
        "frequency_min": used.f_min,
        "frequency_max": used.f_max,
        "max_length_s": length_s,
        "truncation": "rand_trunc",
        "padding": fill,
        "padding_value": 0.0,
        "return_attention_mask": False,
        "top_db": None,
    }
    # Our own key, for filters that were made for another rate than that of the waveforms.
    return numbers if used.sample_rate == sample_rate else numbers | {"mel_sampling_rate": used.sample_rate}


def _are(found: Tensor, known: Filters, window: int) -> bool:
    """Whether filters [window / 2 + 1, M] are the known ones."""
    expected = mel_filter_bank(
        window // 2 + 1,
        found.shape[1],
        sample_rate=known.sample_rate,
        f_min=known.f_min,
        f_max=known.f_max,
        scale="slaney",
        equal_area=True,
    )
    # Far above the rounding error of single precision; another edge or rate moves filters by thousands of times as much.
    return found.shape == expected.shape and torch.allclose(found.float(), expected, rtol=0, atol=float(1e-5 * expected.max()))
