"""The dual encoder: an audio tower and a text tower, projected into one space.

A saved model is a folder with ``model.safetensors`` and ``config.json``; the two rebuild it alone, the tokenizer included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from clapkit import registry
from clapkit.encoders.adaptation import hold_still, layer_scales, layers_of, modules_within, split_tower
from clapkit.encoders.adapters import merged_state
from clapkit.encoders.fingerprint import CONFIG, WEIGHTS
from clapkit.encoders.heads import make_head
from clapkit.encoders.pretrained import WithoutDrawing
from clapkit.errors import CheckpointError, ClapkitError, ConfigError
from clapkit.types import AudioSpec

FORMAT = 1
Side = Literal["audio", "text"]
SIDES: tuple[Side, ...] = ("audio", "text")


class DualEncoder(nn.Module):
    """Two towers with projection heads and unit-norm outputs.

    Args:
        audio_encoder: name of the audio tower.
        text_encoder: name of the text tower.
        embedding_dim: width D of the joint space.
        audio_options: options of the audio tower.
        text_options: options of the text tower; ``captions`` trains its tokenizer.
        audio_head: kind of the projection head behind the audio tower.
        text_head: likewise, behind the text tower.

    Raises:
        UnknownNameError: if there is no such tower, option or head.
        CheckpointError: if an option names weights that cannot be used.
    """

    def __init__(
        self,
        audio_encoder: str,
        text_encoder: str,
        *,
        embedding_dim: int,
        audio_options: Mapping[str, Any] | None = None,
        text_options: Mapping[str, Any] | None = None,
        audio_head: str = "mlp",
        text_head: str = "mlp",
    ) -> None:
        super().__init__()
        self.audio_tower = registry.build("audio encoder", audio_encoder, audio_options)
        self.text_tower = registry.build("text encoder", text_encoder, text_options)
        self.audio_head = make_head(audio_head, self.audio_tower.embedding_dim, embedding_dim)
        self.text_head = make_head(text_head, self.text_tower.embedding_dim, embedding_dim)
        self.embedding_dim = embedding_dim
        self._frozen: dict[Side, list[nn.Module]] = {}  # side -> modules of the tower that are trained after all
        self._config: dict[str, Any] = {
            "clapkit_model": FORMAT,
            "embedding_dim": embedding_dim,
            "audio": {"encoder": audio_encoder, "options": _to_rebuild(self.audio_tower, audio_options), "head": audio_head},
            "text": {"encoder": text_encoder, "options": _to_rebuild(self.text_tower, text_options), "head": text_head},
        }

    @property
    def audio_spec(self) -> AudioSpec:
        """What the audio tower demands of its input."""
        spec: AudioSpec = self.audio_tower.audio_spec
        return spec

    @property
    def tower_names(self) -> dict[str, str]:
        """``audio`` and ``text`` -> name of the tower's plug-in."""
        return {side: self._config[side]["encoder"] for side in ("audio", "text")}

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds: names, options and heads that rebuild the model without its weights.

        ``logit_scale`` is there where the model was trained with one factor on all cosines; embeddings do not need it.
        """
        return self._config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def notes(self) -> list[str]:
        """What the user should know of how the towers were made, one sentence each."""
        return [note for tower in (self.audio_tower, self.text_tower) for note in getattr(tower, "notes", ())]

    @property
    def takes_languages(self) -> bool:
        """Whether the text tower asks for the language of a sentence."""
        return getattr(self.text_tower, "takes_languages", False)

    @property
    def captions_cut(self) -> tuple[int, int] | None:
        """How many captions the text tower has cut so far and at how many tokens; None if it does not count."""
        tower = self.text_tower
        return (tower.num_cut, tower.max_tokens) if hasattr(tower, "num_cut") else None

    def tower(self, side: Side) -> nn.Module:
        """One of the towers."""
        tower: nn.Module = self.audio_tower if side == "audio" else self.text_tower
        return tower

    def layers(self, side: Side, *, flag: str) -> list[nn.Module]:
        """The blocks of a tower from input to output, for the option ``flag``.

        Raises:
            ConfigError: if the tower has none.
        """
        return layers_of(self.tower(side), f"{side} tower {self.tower_names[side]}", flag=flag)

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Embed waveforms float32 [B, T] of which ``num_samples`` [B] are real; gives unit-norm float32 [B, D]."""
        return functional.normalize(self.audio_head(self.audio_tower(waveform, num_samples)).float(), dim=1)

    def encode_text(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """Embed B sentences; gives unit-norm float32 [B, D].

        Args:
            captions: the sentences.
            languages: ISO 639-1 tag of each, for towers that ask for it; None is English.
        """
        features = self._text_features(captions, languages)
        return functional.normalize(self.text_head(features).float(), dim=1)

    def _text_features(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        asked = [languages or ["en"] * len(captions)] if self.takes_languages else []
        features: Tensor = self.text_tower(captions, *asked)
        return features

    def forward(
        self, waveform: Tensor, num_samples: Tensor, captions: Sequence[str], languages: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed C clips and B captions; gives audio [C, D] and text [B, D]."""
        return self.encode_audio(waveform, num_samples), self.encode_text(captions, languages)

    def freeze(self, tower: Side, *, except_for: Sequence[nn.Module] = ()) -> None:
        """Leave a tower as it is: no gradients, no dropout, no running statistics. Its projection head still learns.

        Args:
            tower: which one; what was said of it before is forgotten.
            except_for: modules of the tower that are trained after all.
        """
        self.tower(tower).requires_grad_(False)
        for module in except_for:
            module.requires_grad_(True)
        self._frozen[tower] = list(except_for)
        hold_still(self.tower(tower), except_for, training=self.training)

    def unfreeze_last(self, tower: Side, count: int) -> None:
        """Freeze a tower but for its last layers and what comes behind them, such as a final norm or a pooler.

        Raises:
            ConfigError: if the tower has no layers, or fewer.
        """
        layers = self.layers(tower, flag="--unfreeze-last")
        if not 1 <= count <= len(layers):
            raise ConfigError(
                f"--unfreeze-last {count}: the {tower} tower {self.tower_names[tower]} has {len(layers)} layers; "
                f"choose 1 to {len(layers)}"
            )
        module = self.tower(tower)
        trained = set[nn.Parameter]().union(*split_tower(module, layers, partial(self.probe, tower))[-count - 1 :])
        self.freeze(tower, except_for=modules_within(module, trained))
        for parameter in trained:
            parameter.requires_grad_(True)

    def learning_rate_scales(self, decay: float) -> dict[str, float]:
        """Parameter name -> share of the learning rate with layer-wise decay; heads have 1, towers as in ``layer_scales``.

        Raises:
            ConfigError: if a tower that is trained has no layers.
        """
        scales = {name: 1.0 for name, _ in self.named_parameters()}
        for side in SIDES:
            tower = self.tower(side)
            if any(p.requires_grad for p in tower.parameters()):
                parts = split_tower(tower, self.layers(side, flag="--layer-decay"), partial(self.probe, side))
                own = layer_scales(tower, parts, decay=decay)
                scales |= {f"{side}_tower.{name}": scale for name, scale in own.items()}
        return scales

    def probe(self, side: Side) -> Tensor:
        """What a tower makes of a window of silence, or of one letter; [1, embedding_dim of the tower]."""
        if side == "text":
            return self._text_features(["a"])
        length = torch.tensor([self.audio_spec.window_samples], device=self.device)
        features: Tensor = self.audio_tower(torch.zeros(1, int(length), device=self.device), length)
        return features

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        for tower, except_for in self._frozen.items():
            hold_still(self.tower(tower), except_for, training=mode)
        return self

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder, replacing what is there file by file.

        Low-rank adapters are added to the weights that are written; the model itself keeps them apart.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / WEIGHTS, safetensors.torch.save(own_memory(merged_state(self))))
        text = json.dumps(self._config, ensure_ascii=False, indent=1, sort_keys=True)
        _replace(folder / CONFIG, text.encode())

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> DualEncoder:
        """Rebuild a saved model, in evaluation mode.

        Raises:
            CheckpointError: if a file is missing or damaged, or the weights do not fit the configuration.
        """
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if not isinstance(config, dict) or "clapkit_model" not in config:
                raise CheckpointError(
                    f"{folder / CONFIG}: cannot be used: is no clapkit model; name another folder or train run"
                )
            if config["clapkit_model"] != FORMAT:
                raise CheckpointError(
                    f"{folder / CONFIG}: model format {config['clapkit_model']!r}, this clapkit reads {FORMAT}; "
                    "use the version that wrote it"
                )
            with WithoutDrawing():
                model = cls(
                    config["audio"]["encoder"],
                    config["text"]["encoder"],
                    embedding_dim=config["embedding_dim"],
                    audio_options=config["audio"]["options"],
                    text_options=config["text"]["options"],
                    # Models of clapkit 0.1 had one kind of head and did not say so.
                    audio_head=config["audio"].get("head", "mlp"),
                    text_head=config["text"].get("head", "mlp"),
                )
            if "logit_scale" in config:
                model.config["logit_scale"] = config["logit_scale"]
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, ClapkitError) as error:
            raise CheckpointError(
                f"{folder / CONFIG}: cannot be used ({type(error).__name__}: {error}); "
                "name a finished train run or a model folder"
            ) from error
        try:
            model.load_weights(folder / WEIGHTS)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_other_library(config)}") from error
        return model.to(device).eval()

    def load_weights(self, path: Path) -> None:
        """Load weights, strictly.

        Raises:
            CheckpointError: if the file is missing or damaged, or does not fit.
        """
        try:
            weights = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); restore it or train again") from error
        expected = self.state_dict()
        odd = sorted(expected.keys() ^ weights.keys()) or sorted(k for k in expected if expected[k].shape != weights[k].shape)
        if odd:
            raise CheckpointError(
                f"{path}: {len(odd)} tensors do not fit the configuration, first {odd[0]!r}; "
                "weights and config.json must come from the same run"
            )
        self.load_state_dict(weights)


def own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the processor, of which no two share memory, as safetensors demands; tied weights are stored twice."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _to_rebuild(tower: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options that make a tower again from nothing but themselves."""
    options = {key: value for key, value in (given or {}).items() if key != "captions"}
    options |= getattr(tower, "rebuild_options", {})
    return {key: value for key, value in options.items() if value is not None}


def _other_library(config: Mapping[str, Any]) -> str:
    """What to add to a message where towers of transformers were saved under another version, which may name tensors anew."""
    towers = [config[side]["options"].get("config") for side in SIDES]
    wrote = {
        str(tower["transformers_version"]) for tower in towers if isinstance(tower, dict) and "transformers_version" in tower
    }
    here = version("transformers") if wrote else ""
    if wrote <= {here}:
        return ""
    others = " and ".join(sorted(wrote - {here}))
    return f"; it was saved with transformers {others}, here is {here}: names of tensors may differ, install that version"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
