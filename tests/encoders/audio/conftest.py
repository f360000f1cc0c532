"""Tiny random models of every family that ``hf`` knows, saved with their extractors as the library saves them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clapkit.encoders.pretrained import quiet_libraries

RATE = 8000
SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 3,
    "conv_kernel": [10, 8, 8],
    "conv_stride": [8, 8, 5],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
    # So that a test which forgets to turn them off fails.
    "layerdrop": 0.9,
    "mask_time_prob": 0.5,
    "mask_time_length": 2,
}
NORMED = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


@dataclass(frozen=True)
class Recipe:
    """How one tiny model is made: modules and classes of transformers, configuration, extractor settings."""

    model: str
    config: dict[str, Any]
    extractor: str
    settings: dict[str, Any]


def speech(model: str, *, normalize: bool = True, **more: Any) -> Recipe:
    settings = {"sampling_rate": RATE, "do_normalize": normalize}
    return Recipe(model, SPEECH | more, "wav2vec2.feature_extraction_wav2vec2.Wav2Vec2FeatureExtractor", settings)


CLAP_AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "window_size": 4,
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "depths": [2, 2],
    "num_attention_heads": [2, 2],
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
    "max_position_embeddings": 20,
}
CLAP_EXTRACTOR = "clap.feature_extraction_clap.ClapFeatureExtractor"
CLAP_SETTINGS = {
    "feature_size": 16,
    "sampling_rate": RATE,
    "hop_length": 80,
    "max_length_s": 1,
    "fft_window_size": 256,
    "frequency_min": 50,
    "frequency_max": 3500,
    "truncation": "rand_trunc",
}
AST_CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_length": 128,
    "num_mel_bins": 32,
}
AST_EXTRACTOR = (
    "audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer.ASTFeatureExtractor",
    {"sampling_rate": 16000, "num_mel_bins": 32, "max_length": 128},
)
AST_MODULE = "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer"
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 30,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "max_target_positions": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "encoder_layerdrop": 0.9,
}
WHISPER_EXTRACTOR = (
    "whisper.feature_extraction_whisper.WhisperFeatureExtractor",
    {"feature_size": 16, "sampling_rate": 16000, "chunk_length": 1},
)
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "feature_projection_input_dim": 32,
    "conv_depthwise_kernel_size": 5,
    "layerdrop": 0.9,
    "apply_spec_augment": True,
    "mask_time_prob": 0.5,
    "mask_time_length": 2,
}

RECIPES = {
    "clap": Recipe(
        "clap.modeling_clap.ClapModel",
        {"audio_config": CLAP_AUDIO, "text_config": TEXT, "projection_dim": 8},
        CLAP_EXTRACTOR,
        CLAP_SETTINGS,
    ),
    "clap-audio": Recipe(
        "clap.modeling_clap.ClapAudioModel", CLAP_AUDIO, CLAP_EXTRACTOR, CLAP_SETTINGS | {"padding": "repeat"}
    ),
    "clap-pad": Recipe("clap.modeling_clap.ClapAudioModel", CLAP_AUDIO, CLAP_EXTRACTOR, CLAP_SETTINGS | {"padding": "pad"}),
    "ast": Recipe(f"{AST_MODULE}.ASTModel", AST_CONFIG, *AST_EXTRACTOR),
    "ast-classifier": Recipe(f"{AST_MODULE}.ASTForAudioClassification", AST_CONFIG, *AST_EXTRACTOR),
    "wav2vec2-bert": Recipe(
        "wav2vec2_bert.modeling_wav2vec2_bert.Wav2Vec2BertModel",
        BERT,
        "seamless_m4t.feature_extraction_seamless_m4t.SeamlessM4TFeatureExtractor",
        {"feature_size": 16, "num_mel_bins": 16, "sampling_rate": 16000, "padding_value": 1},
    ),
    "wav2vec2-group": speech("wav2vec2.modeling_wav2vec2.Wav2Vec2Model"),
    "wav2vec2-layer": speech("wav2vec2.modeling_wav2vec2.Wav2Vec2ForCTC", **NORMED),
    "wav2vec2-adapter": speech(
        "wav2vec2.modeling_wav2vec2.Wav2Vec2Model", add_adapter=True, num_adapter_layers=1, output_hidden_size=16, **NORMED
    ),
    "hubert": speech("hubert.modeling_hubert.HubertModel", **NORMED),
    "hubert-group": speech("hubert.modeling_hubert.HubertModel", normalize=False),
    "wavlm": speech("wavlm.modeling_wavlm.WavLMModel", **NORMED),
    "wavlm-group": speech("wavlm.modeling_wavlm.WavLMModel", normalize=False),
    "unispeech-sat": speech("unispeech_sat.modeling_unispeech_sat.UniSpeechSatModel", **NORMED),
    "data2vec-audio": speech(
        "data2vec.modeling_data2vec_audio.Data2VecAudioModel", conv_bias=True, num_conv_pos_embeddings=3, conv_pos_kernel_size=7
    ),
    "sew": speech("sew.modeling_sew.SEWModel", squeeze_factor=2),
    "whisper": Recipe("whisper.modeling_whisper.WhisperForConditionalGeneration", WHISPER, *WHISPER_EXTRACTOR),
    "whisper-base": Recipe("whisper.modeling_whisper.WhisperModel", WHISPER, *WHISPER_EXTRACTOR),
}


# One kind for each way through the code; the others only differ in what they read.
PATHS = (
    "clap",
    "ast",
    "wav2vec2-bert",
    "wav2vec2-group",
    "hubert",
    "unispeech-sat",
    "wavlm",
    "data2vec-audio",
    "sew",
    "whisper",
)


@dataclass(frozen=True)
class Saved:
    """A model on the disk, and what the library makes of it.

    Attributes:
        folder: with configuration, weights and extractor settings.
        model: the library's model, the audio half of a larger one, in evaluation mode.
        extractor: the library's feature extractor.
    """

    folder: Path
    model: Any
    extractor: Any

    def features(self, clip: np.ndarray) -> dict[str, torch.Tensor]:
        """What the library's extractor makes of one unpadded clip."""
        return dict(self.extractor(clip, sampling_rate=self.extractor.sampling_rate, return_tensors="pt"))

    @torch.no_grad()
    def hidden(self, clip: np.ndarray) -> Any:
        """What the library's model makes of one unpadded clip."""
        features = self.features(clip)
        features.pop("is_longer", None)
        if "Whisper" in type(self.model).__name__:
            features.pop("attention_mask", None)
        return self.model(**features)


def library(path: str) -> Any:
    """A class below ``transformers.models``."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def audio_part(model: Any) -> Any:
    """The audio model inside a larger one."""
    for name in ("audio_model", "audio_spectrogram_transformer", "wav2vec2", "encoder", "model"):
        part = getattr(model, name, None)
        if name == "encoder" and "Whisper" not in type(model).__name__:
            continue
        if part is not None:
            return audio_part(part)
    return model


def make(recipe: Recipe, folder: Path, **changes: Any) -> Saved:
    torch.manual_seed(0)
    with quiet_libraries():
        model_class = library(recipe.model)
        config = model_class.config_class(**(recipe.config | changes))
        model = model_class(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Fresh models have zeros in places where a mistake would then not show.
                if parameter.ndim == 1 or "position" in name or "token" in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.sub_(30)
                if name.endswith("running_var"):
                    buffer.mul_(100)
        extractor = library(recipe.extractor)(**recipe.settings)
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
    return Saved(folder, audio_part(model), extractor)


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """Gives a tiny model of a kind; it is made once and nobody changes it."""
    made: dict[str, Saved] = {}

    def get(kind: str) -> Saved:
        if kind not in made:
            made[kind] = make(RECIPES[kind], tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture
def make_saved(tmp_path: Path) -> Callable[..., Saved]:
    """Makes a model of a kind anew, for tests that damage it; keywords change its configuration."""

    def get(kind: str, **changes: Any) -> Saved:
        return make(RECIPES[kind], tmp_path / kind, **changes)

    return get


def sounds(sample_rate: int, *durations_s: float) -> list[np.ndarray]:
    """Clips that differ in length, level and pitch, with a little noise."""
    generator = np.random.default_rng(0)
    clips = []
    for number, duration_s in enumerate(durations_s):
        time = np.arange(round(sample_rate * duration_s)) / sample_rate
        tone = 0.2 * np.sin(2 * np.pi * (300 + 170 * number) * time * (1 + 0.3 * time))
        clips.append((tone + 0.05 * generator.standard_normal(len(time)) + 0.01).astype(np.float32))
    return clips


def batch_of(clips: list[np.ndarray], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips padded with zeros to ``length``, or to the longest; and their lengths."""
    length = length or max(len(clip) for clip in clips)
    waveform = torch.zeros(len(clips), length)
    for row, clip in enumerate(clips):
        waveform[row, : len(clip)] = torch.from_numpy(clip)
    return waveform, torch.tensor([len(clip) for clip in clips])
