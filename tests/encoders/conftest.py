"""The names under which LAION-CLAP and msclap store an HTSAT, from those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

PARTS = (
    ("batch_norm.", "bn0."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.self.", ".attn."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
NUM_CLASSES = 5


@pytest.fixture(scope="session")
def htsat_config() -> dict[str, Any]:
    """A small HTSAT of the sides and bins of the published ones: two stages of two blocks and of one."""
    return {
        "spec_size": 256,
        "num_mel_bins": 64,
        "window_size": 8,
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [2, 1],
        "num_attention_heads": [2, 4],
        "num_hidden_layers": 2,
        "mlp_ratio": 2.0,
    }


@pytest.fixture(scope="session")
def shake() -> Callable[[nn.Module], None]:
    """Gives a model weights that no two clips or captions embed alike with, and statistics of decibels."""

    def change(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(0.0, 0.2, generator=generator)
                elif weight.dim() == 1:
                    weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
                assert weight.isfinite().all(), name
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(-20.0, 5.0, generator=generator)
                elif name.endswith("running_var"):
                    buffer.uniform_(100.0, 400.0, generator=generator)

    return change


@pytest.fixture(scope="session")
def htsat_state() -> Callable[..., dict[str, Tensor]]:
    """Tensors of a ``ClapAudioModel`` under the original's names, with what the original stores besides."""

    def convert(tensors: Mapping[str, Tensor], mel: Tensor) -> dict[str, Tensor]:
        state = {}
        for name, tensor in tensors.items():
            original = name.removeprefix("audio_encoder.")
            for ours, theirs in PARTS:
                original = original.replace(ours, theirs)
            state[original] = tensor.clone()
        for name in [name for name in state if ".attn.query." in name]:
            parts = [state.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            state[name.replace(".query.", ".qkv.")] = torch.cat(parts)
        num_bins = len(mel)
        return state | {
            "spectrogram_extractor.stft.conv_real.weight": torch.zeros(num_bins, 1, 2 * (num_bins - 1)),
            "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(num_bins, 1, 2 * (num_bins - 1)),
            "logmel_extractor.melW": mel.clone(),
            "layers.0.blocks.1.attn_mask": torch.zeros(64, 64, 64),
            "tscam_conv.weight": torch.zeros(NUM_CLASSES, 16, 2, 3),
            "tscam_conv.bias": torch.zeros(NUM_CLASSES),
            "head.weight": torch.zeros(NUM_CLASSES, NUM_CLASSES),
            "head.bias": torch.zeros(NUM_CLASSES),
        }

    return convert


@pytest.fixture(scope="session")
def slaney_filters() -> Callable[..., Tensor]:
    """Mel filters [513, 64] as transformers computes those of librosa."""

    def make(sample_rate: int, f_min: float, f_max: float) -> Tensor:
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            num_frequency_bins=513,
            num_mel_filters=64,
            min_frequency=f_min,
            max_frequency=f_max,
            sampling_rate=sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        return torch.from_numpy(filters).float()

    return make
