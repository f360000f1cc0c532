"""Audio models of the library transformers, with their front ends as batched torch code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clapkit.encoders import pretrained
from clapkit.encoders.audio import _positions
from clapkit.encoders.audio._families import (
    FAMILIES,
    Family,
    PoolingName,
    Settings,
    check_equal,
    choose_pool,
    sample_rate_of,
)
from clapkit.encoders.spectrograms import fit, is_real
from clapkit.errors import CheckpointError, ConfigError, ShapeError
from clapkit.types import AudioSpec

AST, CLAP = "audio-spectrogram-transformer", "clap_audio_model"

# What to_dict writes beside the architecture: names of classes that are not kept, and of files.
NO_ARCHITECTURE = ("_name_or_path", "architectures", "dtype", "id2label", "label2id")


class HfAudioTower(nn.Module):
    """A model of the library transformers behind its front end, pooled to one vector a clip.

    The embedding of a clip is that of the library for the clip alone: it depends neither on its neighbours nor on how far the
    batch was padded. Clips that are too short for one frame are padded with silence to the length of one.

    Args:
        model: the transformers module.
        family: how it is used.
        settings: numbers of the front end.
        window_s: length of the window in seconds.
        pooling: how frames become a vector.
        notes: what the user should know of how the model was made.

    Attributes:
        model: the transformers module; its weights are the tower's only ones.
        embedding_dim: width of the output.
        audio_spec: the input that the tower demands.
        rebuild_options: options that make the same module without any file.
        notes: sentences that the user should read.

    Raises:
        CheckpointError: if front end and model do not fit each other.
        ConfigError: if the model takes no such window, or has no such pooling.
    """

    def __init__(
        self, model: Any, family: Family, settings: Settings, *, window_s: float, pooling: PoolingName, notes: list[str]
    ) -> None:
        super().__init__()
        self.front_end = family.make_front_end(model.config, settings, window_s)
        self.model = model
        self.embedding_dim = family.width(model.config)
        self.audio_spec = AudioSpec(sample_rate_of(family, settings), window_s)
        if self.audio_spec.window_samples < self.front_end.min_samples:
            least = self.front_end.min_samples / self.audio_spec.sample_rate
            raise ConfigError(f"window_s={window_s:g}: this model takes at least {least:.4g} s; choose a longer window")
        self.notes = notes
        self._family, self._pool = family, choose_pool(family, model.config, pooling)
        self.rebuild_options: dict[str, Any] = {
            "weights": None,
            "config": {key: value for key, value in model.config.to_dict().items() if key not in NO_ARCHITECTURE},
            "front_end": dict(settings.content),
            "window_s": window_s,
            "pooling": pooling,
        }
        self.eval()

    @property
    def layers(self) -> list[nn.Module]:
        """The Transformer blocks from input to output."""
        return self._family.layers(self.model)

    def features(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """What the model hears, in float32 even under autocast.

        Args:
            waveform: float32 [B, T], T at most the window.
            num_samples: how many samples of each are real [B].

        Returns:
            Features, and how many of their time steps are real [B].

        Raises:
            ShapeError: if the waveforms are longer than the window.
        """
        length = waveform.shape[1]
        if length > self.audio_spec.window_samples:
            raise ShapeError(
                f"waveforms of {length} samples, the tower takes windows of {self.audio_spec.window_samples}; cut them first"
            )
        least = self.front_end.min_samples
        with torch.autocast(waveform.device.type, enabled=False):
            real = waveform.float().masked_fill(~is_real(num_samples, length), 0.0)
            heard: tuple[Tensor, Tensor] = self.front_end(fit(real, max(length, least)), num_samples.clamp(min=least))
        return heard

    def forward(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Encode waveforms [B, T] of which ``num_samples`` [B] are real; gives [B, embedding_dim]."""
        return self._pool(self.model, *self.features(waveform, num_samples))


def build(
    *,
    weights: str | None = None,
    config: dict[str, Any] | None = None,
    front_end: dict[str, Any] | None = None,
    window_s: float | None = None,
    pooling: PoolingName = "auto",
) -> HfAudioTower:
    """A pretrained audio model.

    Args:
        weights: folder with ``config.json``, ``preprocessor_config.json`` and weights, or a name of the Hugging Face Hub.
        config: the model's configuration, instead of weights: the model has random ones then.
        front_end: content of ``preprocessor_config.json``, instead of that beside the weights.
        window_s: length of the window that the tower sees, seconds; None is what the model was made for.
        pooling: ``auto``, or ``mean`` or ``pooler`` where the model has it.

    Raises:
        ConfigError: if there is neither ``weights`` nor ``config``, or the model takes no such window or pooling.
        CheckpointError: if the files cannot be used.
    """
    if (weights is None) == (config is None):
        raise ConfigError(
            "audio encoder hf: expected either weights or a configuration; pass --audio-weights with a folder or a name of "
            "the Hugging Face Hub"
        )
    if window_s is not None and window_s <= 0:
        raise ConfigError(f"window_s={window_s:g}: expected more than 0 seconds")
    folder = pretrained.find(weights) if weights is not None else None
    origin = str(folder) if folder is not None else "config"
    content = dict(config) if config is not None else _read_config(origin, folder)
    model_type = _check_config(origin, content)
    family = FAMILIES[model_type]
    settings = Settings(front_end if front_end is not None else _read_front_end(origin, folder), family.extractor)
    with pretrained.quiet_libraries():
        model_class = family.load_class()
        configuration = _make_configuration(origin, model_class, family, content)
    _check_configuration(origin, configuration)
    if folder is not None:
        renames = {"key_mapping": dict(family.renames)} if family.renames else {}
        model, notes = pretrained.load_transformer(model_class, folder, config=configuration, **renames)
    else:
        model, notes = model_class(configuration), []
    if hasattr(model, "masked_spec_embed"):
        del model.masked_spec_embed  # of no use without masking, and without a gradient
    _positions.forget_calls(model)
    window_s, settings, refitted = _fit_window(model, family, settings, window_s)
    return HfAudioTower(
        model, family, settings, window_s=window_s, pooling=pooling, notes=notes + (refitted if folder is not None else [])
    )


def _read_config(origin: str, folder: Path | None) -> dict[str, Any]:
    path = (folder or Path()) / pretrained.CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{origin}: has no {pretrained.CONFIG}, so its architecture is not known; name a folder that has one"
        )
    return pretrained.read_json(path)


def _read_front_end(origin: str, folder: Path | None) -> dict[str, Any]:
    """The numbers of the front end; models that were saved with a tokenizer keep them in the file of both."""
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        return pretrained.read_json(folder / "preprocessor_config.json")
    if folder is not None and (folder / "processor_config.json").is_file():
        nested = pretrained.read_json(folder / "processor_config.json").get("feature_extractor")
        if isinstance(nested, dict):
            return nested
    raise CheckpointError(
        f"{origin}: has no preprocessor_config.json, so the numbers of its front end are not known; add the file that the "
        "model was published with"
    )


def _check_config(origin: str, content: Mapping[str, Any]) -> str:
    """The key of the family that a configuration is of.

    Raises:
        CheckpointError: if it is of none.
    """
    if "auto_map" in content:
        raise CheckpointError(
            f"{origin}: its config.json asks for code of its own (auto_map), and clapkit never runs code that comes with "
            "weights; name a model that transformers carries itself"
        )
    found = content.get("model_type")
    model_type = CLAP if found == "clap" else found
    if model_type in FAMILIES:
        return str(model_type)
    known = ", ".join(sorted([*FAMILIES, "clap"]))
    if "vocab_size" in content:
        raise CheckpointError(
            f"{origin}: {found} is a text model; pass it as --text-weights, and one of these as --audio-weights: {known}"
        )
    raise CheckpointError(f"{origin}: unknown audio model {found!r}; known: {known}")


def _make_configuration(origin: str, model_class: Any, family: Family, content: dict[str, Any]) -> Any:
    """The configuration object, with what clapkit sets in it."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        if content["model_type"] == "clap":
            from transformers.models.clap.configuration_clap import ClapConfig

            configuration = ClapConfig.from_dict(content).audio_config
        else:
            configuration = model_class.config_class.from_dict(content)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{origin}: config.json cannot be used for {model_class.__name__} ({reason}); restore the file"
        ) from error
    for key, value in family.settings.items():
        if hasattr(configuration, key):
            setattr(configuration, key, value)
    return configuration


def _check_configuration(origin: str, configuration: Any) -> None:
    if getattr(configuration, "enable_fusion", False):
        raise CheckpointError(
            f"{origin}: is a CLAP model with fusion, which crops long clips at random and fuses a clip that its batch decides, "
            "so one sound has many embeddings; name weights without fusion (enable_fusion false)"
        )


def _fit_window(model: Any, family: Family, settings: Settings, window_s: float | None) -> tuple[float, Settings, list[str]]:
    """Make the model take a window; gives its length, the front end's numbers for it, and what the user should know."""
    made_for_s = family.default_window_s(model.config, settings)
    window_s = made_for_s if window_s is None else window_s
    if model.config.model_type == CLAP and window_s != made_for_s:
        note = f"CLAP spectrograms of {window_s:g} s are stretched to the width of {made_for_s:g} s"
        return window_s, settings, [note]
    if model.config.model_type != AST:
        return window_s, settings, []
    check_equal("frames", settings.count("max_length", 1024), model.config.max_length)
    max_length, before = round(100 * window_s), model.config.max_length
    if max_length == before:
        return window_s, settings, []
    _positions.refit(model, max_length)
    note = f"AST positions for {made_for_s:g} s ({before} frames) are stretched to {window_s:g} s ({max_length} frames)"
    return window_s, Settings({**settings.content, "max_length": max_length}, family.extractor), [note]
