"""The audio models of the library transformers that ``hf`` knows: their classes, front ends, pooling and blocks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from clapkit.encoders.audio import _pooling as pooling
from clapkit.encoders.audio._front_ends import (
    AstFrontEnd,
    ClapFrontEnd,
    FrontEnd,
    SeamlessFrontEnd,
    SilenceFill,
    WaveformFrontEnd,
    WhisperFrontEnd,
)
from clapkit.encoders.spectrograms import KaldiFilterBank, MelSpectrogram
from clapkit.errors import CheckpointError, ConfigError

Pool = Callable[[Any, Tensor, Tensor], Tensor]
PoolingName = Literal["auto", "mean", "pooler"]

SPEECH_WINDOW_S = 10.0

# Chance of pretraining that contrastive training does without: masked spans crash on short clips, and a skipped layer has no
# gradient, which neither several processes nor cached gradients can bear. Without masking, the mask vector is not made at all.
SPEECH_SETTINGS = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False, "layerdrop": 0.0}
# Adapters shorten speech for a decoder that is not here, and their convolutions hear padding.
NO_ADAPTER = {"add_adapter": False, "use_intermediate_ffn_before_adapter": False}


class Settings:
    """The content of ``preprocessor_config.json``; keys that it lacks have the defaults of the library's extractor.

    Args:
        content: the JSON object.
        extractor: name of the extractor that it must be of, if it says one.

    Raises:
        CheckpointError: if it is of another extractor.
    """

    def __init__(self, content: Mapping[str, Any], extractor: str) -> None:
        found = content.get("feature_extractor_type", extractor)
        if found != extractor:
            raise CheckpointError(f"front end: is a {found}, the model takes that of {extractor}; name matching files")
        self.content = content

    def number(self, key: str, default: float) -> float:
        """A number.

        Raises:
            CheckpointError: if the value is none.
        """
        value = self.content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"front end: {key} is {value!r}, expected a number; restore preprocessor_config.json")
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number, at least 1.

        Raises:
            CheckpointError: if the value is none.
        """
        value = self.number(key, default)
        if value != int(value) or value < 1:
            raise CheckpointError(
                f"front end: {key} is {value}, expected a whole number from 1; restore preprocessor_config.json"
            )
        return int(value)

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of several words.

        Raises:
            CheckpointError: if the value is none of them.
        """
        value = self.content.get(key, default)
        if value not in allowed:
            raise CheckpointError(f"front end: {key} is {value!r}, expected {' or '.join(allowed)}; name other weights")
        return str(value)

    @property
    def sample_rate(self) -> int:
        """Hz; all but CLAP take 16 kHz by default."""
        return self.count("sampling_rate", 16000)


@dataclass(frozen=True, slots=True)
class Family:
    """How one kind of model is used.

    Attributes:
        model_class: module below ``transformers.models`` and class.
        extractor: class of the library's feature extractor.
        default_window_s: window of a model with this configuration and these settings.
        make_front_end: from configuration, settings and window in seconds.
        pools: the ways of pooling that it has; the first one is ``auto``.
        layers: the blocks of a model, from input to output.
        width: of the vectors that come out.
        settings: entries of the configuration that clapkit sets.
        renames: patterns of tensor names in folders of larger models that contain this one.
    """

    model_class: str
    extractor: str
    default_window_s: Callable[[Any, Settings], float]
    make_front_end: Callable[[Any, Settings, float], FrontEnd]
    pools: Callable[[Any], Mapping[str, Pool]]
    layers: Callable[[Any], list[nn.Module]]
    width: Callable[[Any], int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)

    def load_class(self) -> Any:
        """The model's class; takes seconds, because transformers is imported."""
        module, name = self.model_class.rsplit(".", 1)
        return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def check_equal(what: str, front_end: int, model: int) -> None:
    """Refuse a front end that makes something else than the model takes.

    Raises:
        CheckpointError: if the numbers differ.
    """
    if front_end != model:
        raise CheckpointError(f"front end: gives {front_end} {what}, the model takes {model}; name files that belong together")


def _clap_rate(settings: Settings) -> int:
    return settings.count("sampling_rate", 48000)


def _clap_front_end(config: Any, settings: Settings, window_s: float) -> FrontEnd:
    settings.choice("truncation", "fusion", ("rand_trunc",))
    rate, hop, window = _clap_rate(settings), settings.count("hop_length", 480), settings.count("fft_window_size", 1024)
    num_mels = settings.count("feature_size", 64)
    check_equal("mel bins", num_mels, config.num_mel_bins)
    fill: SilenceFill = settings.choice("padding", "repeatpad", ("repeatpad", "repeat", "pad"))  # type: ignore[assignment]
    samples = round(rate * window_s)
    most = config.spec_size * (config.spec_size // config.num_mel_bins) * hop - 1
    if not window // 2 < samples <= most:
        raise ConfigError(
            f"window_s={window_s:g}: this CLAP model takes from {(window // 2 + 1) / rate:.3g} to {most / rate:.5g} s; "
            "choose a window between them"
        )
    f_min, f_max = settings.number("frequency_min", 0), settings.number("frequency_max", 14000)
    # Models without fusion were trained on librosa's filters, those with it on torchaudio's.
    # The HTSAT of msclap hears 44.1 kHz through filters that were made for 32 kHz; the key is clapkit's own.
    mel_rate = settings.count("mel_sampling_rate", rate)
    mel = MelSpectrogram(
        mel_rate, window=window, hop=hop, num_mels=num_mels, f_min=f_min, f_max=f_max, scale="slaney", equal_area=True
    )
    return ClapFrontEnd(mel, window_samples=samples, fill=fill)


def _ast_front_end(config: Any, settings: Settings, window_s: float) -> FrontEnd:
    check_equal("mel bins", settings.count("num_mel_bins", 128), config.num_mel_bins)
    bank = KaldiFilterBank(settings.sample_rate, num_mels=config.num_mel_bins, window="hanning")
    normalized = settings.content.get("do_normalize", True)
    mean = settings.number("mean", -4.2677393) if normalized else 0.0
    std = settings.number("std", 4.5689974) if normalized else 0.5
    return AstFrontEnd(bank, max_length=config.max_length, mean=mean, std=std)


def _seamless_front_end(config: Any, settings: Settings, window_s: float) -> FrontEnd:
    num_mels = settings.count("num_mel_bins", 80)
    check_equal("frames at a time", settings.count("stride", 2), 2)
    check_equal("numbers a frame", 2 * num_mels, config.feature_projection_input_dim)
    bank = KaldiFilterBank(settings.sample_rate, num_mels=num_mels, window="povey", gain=2.0**15)
    return SeamlessFrontEnd(bank, padding_value=settings.number("padding_value", 0.0))


def _waveform_front_end(config: Any, settings: Settings, window_s: float) -> FrontEnd:
    normalize = bool(settings.content.get("do_normalize", True))
    return WaveformFrontEnd(normalize=normalize, min_samples=pooling.num_samples_of_a_frame(config))


def _whisper_front_end(config: Any, settings: Settings, window_s: float) -> FrontEnd:
    rate, hop, window = settings.sample_rate, settings.count("hop_length", 160), settings.count("n_fft", 400)
    num_mels = settings.count("feature_size", 80)
    check_equal("mel bins", num_mels, config.num_mel_bins)
    chunk_samples = rate * settings.count("chunk_length", 30)
    check_equal("frames", chunk_samples // hop, 2 * config.max_source_positions)
    if round(rate * window_s) > chunk_samples:
        raise ConfigError(f"window_s={window_s:g}: this Whisper model takes at most {chunk_samples / rate:g} s; choose less")
    mel = MelSpectrogram(
        rate, window=window, hop=hop, num_mels=num_mels, f_min=0.0, f_max=8000.0, scale="slaney", equal_area=True
    )
    return WhisperFrontEnd(mel, chunk_samples=chunk_samples)


def _clap_blocks(model: Any) -> list[nn.Module]:
    return [block for stage in model.audio_encoder.layers for block in stage.blocks]


def _speech_pools(config: Any) -> Mapping[str, Pool]:
    hears_padding = config.feat_extract_norm == "group" or getattr(config, "conv_pos_batch_norm", False)
    return {"mean": pooling.grouped_mean if hears_padding else pooling.masked_mean}


def _grouped(config: Any) -> Mapping[str, Pool]:
    return {"mean": pooling.grouped_mean}


def _speech(model_class: str, pools: Callable[[Any], Mapping[str, Pool]] = _speech_pools) -> Family:
    return Family(
        model_class,
        "Wav2Vec2FeatureExtractor",
        default_window_s=lambda config, settings: SPEECH_WINDOW_S,
        make_front_end=_waveform_front_end,
        pools=pools,
        layers=lambda model: list(model.encoder.layers),
        width=lambda config: int(config.hidden_size),
        settings=SPEECH_SETTINGS | NO_ADAPTER,
    )


FAMILIES: Mapping[str, Family] = {
    "clap_audio_model": Family(
        "clap.modeling_clap.ClapAudioModel",
        "ClapFeatureExtractor",
        default_window_s=lambda config, settings: settings.number("max_length_s", 10),
        make_front_end=_clap_front_end,
        pools=lambda config: {"pooler": pooling.pooler_output},
        layers=_clap_blocks,
        width=lambda config: int(config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1)),
        renames={r"^audio_model\.": ""},
    ),
    "audio-spectrogram-transformer": Family(
        "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.ASTModel",
        "ASTFeatureExtractor",
        # One step of Kaldi's frames is 10 ms.
        default_window_s=lambda config, settings: config.max_length / 100,
        make_front_end=_ast_front_end,
        pools=lambda config: {"pooler": pooling.pooler_output, "mean": pooling.patch_mean},
        layers=lambda model: list(model.layers),
        width=lambda config: int(config.hidden_size),
    ),
    "wav2vec2-bert": Family(
        "wav2vec2_bert.modeling_wav2vec2_bert.Wav2Vec2BertModel",
        "SeamlessM4TFeatureExtractor",
        default_window_s=lambda config, settings: SPEECH_WINDOW_S,
        make_front_end=_seamless_front_end,
        pools=lambda config: {"mean": pooling.masked_mean},
        layers=lambda model: list(model.encoder.layers),
        width=lambda config: int(config.hidden_size),
        settings=SPEECH_SETTINGS | NO_ADAPTER,
    ),
    "hubert": _speech("hubert.modeling_hubert.HubertModel"),
    "wav2vec2": _speech("wav2vec2.modeling_wav2vec2.Wav2Vec2Model"),
    # It would hand two kinds of mask to torch's attention, which warns that it is going to refuse them.
    "wavlm": _speech("wavlm.modeling_wavlm.WavLMModel", _grouped),
    "unispeech-sat": _speech("unispeech_sat.modeling_unispeech_sat.UniSpeechSatModel"),
    # A chain of position convolutions with a norm between them, and one that squeezes frames: no mask stands between those.
    "data2vec-audio": _speech("data2vec.modeling_data2vec_audio.Data2VecAudioModel", _grouped),
    "sew": _speech("sew.modeling_sew.SEWModel", _grouped),
    "whisper": Family(
        "whisper.modeling_whisper.WhisperEncoder",
        "WhisperFeatureExtractor",
        default_window_s=lambda config, settings: settings.count("chunk_length", 30),
        make_front_end=_whisper_front_end,
        pools=lambda config: {"mean": pooling.whisper_mean},
        layers=lambda model: list(model.layers),
        width=lambda config: int(config.d_model),
        settings={"encoder_layerdrop": 0.0, "apply_spec_augment": False},
        renames={r"^(model\.)?encoder\.": ""},
    ),
}


def sample_rate_of(family: Family, settings: Settings) -> int:
    """Hz of the waveforms that the front end takes."""
    return _clap_rate(settings) if family.extractor == "ClapFeatureExtractor" else settings.sample_rate


def choose_pool(family: Family, config: Any, name: PoolingName) -> Pool:
    """The pooling of a name.

    Raises:
        ConfigError: if the model has none of that name.
    """
    pools = family.pools(config)
    if name == "auto":
        return next(iter(pools.values()))
    if name not in pools:
        raise ConfigError(
            f"pooling={name}: {config.model_type} models have {' and '.join(pools)} (and auto); choose one of them"
        )
    return pools[name]
