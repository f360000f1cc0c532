"""The dual encoder: an audio tower and a text tower, projected into one space.

A saved model is a folder with ``model.safetensors`` and ``config.json``; the two rebuild it alone, the tokenizer included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from clapkit import registry
from clapkit.encoders.fingerprint import CONFIG, WEIGHTS
from clapkit.encoders.initialization import preserve_variance
from clapkit.errors import CheckpointError, ClapkitError
from clapkit.types import AudioSpec

FORMAT = 1


class ProjectionHead(nn.Module):
    """Linear, GELU, linear with a shortcut, layer norm: tower width to embedding width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, outputs)
        self.refine = nn.Linear(outputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        preserve_variance(self)

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        projected = self.project(features)
        normed: Tensor = self.norm(projected + self.refine(functional.gelu(projected)))
        return normed


class DualEncoder(nn.Module):
    """Two towers with projection heads and unit-norm outputs.

    Args:
        audio_encoder: name of the audio tower.
        text_encoder: name of the text tower.
        embedding_dim: width D of the joint space.
        audio_options: options of the audio tower.
        text_options: options of the text tower; ``captions`` trains its tokenizer.

    Raises:
        UnknownNameError: if there is no such tower or option.
    """

    def __init__(
        self,
        audio_encoder: str,
        text_encoder: str,
        *,
        embedding_dim: int,
        audio_options: Mapping[str, Any] | None = None,
        text_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.audio_tower = registry.build("audio encoder", audio_encoder, audio_options)
        self.text_tower = registry.build("text encoder", text_encoder, text_options)
        self.audio_head = ProjectionHead(self.audio_tower.embedding_dim, embedding_dim)
        self.text_head = ProjectionHead(self.text_tower.embedding_dim, embedding_dim)
        self.embedding_dim = embedding_dim
        self._frozen: list[nn.Module] = []
        kept = {key: value for key, value in (text_options or {}).items() if key not in ("captions", "tokenizer")}
        self._config: dict[str, Any] = {
            "clapkit_model": FORMAT,
            "embedding_dim": embedding_dim,
            "audio": {"encoder": audio_encoder, "options": dict(audio_options or {})},
            "text": {"encoder": text_encoder, "options": kept | {"tokenizer": self.text_tower.tokenizer_json}},
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
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Embed waveforms float32 [B, T] of which ``num_samples`` [B] are real; gives unit-norm float32 [B, D]."""
        return functional.normalize(self.audio_head(self.audio_tower(waveform, num_samples)).float(), dim=1)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Embed B sentences; gives unit-norm float32 [B, D]."""
        return functional.normalize(self.text_head(self.text_tower(captions)).float(), dim=1)

    def forward(self, waveform: Tensor, num_samples: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embed C clips and B captions; gives audio [C, D] and text [B, D]."""
        return self.encode_audio(waveform, num_samples), self.encode_text(captions)

    def freeze(self, tower: Literal["audio", "text"]) -> None:
        """Leave a tower as it is: no gradients, no dropout, no running statistics. Its projection head still learns."""
        module = self.audio_tower if tower == "audio" else self.text_tower
        module.requires_grad_(False)
        self._frozen.append(module)
        module.eval()

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen towers stay in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder, replacing what is there file by file."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
        _replace(folder / WEIGHTS, safetensors.torch.save(weights))
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
            model = cls(
                config["audio"]["encoder"],
                config["text"]["encoder"],
                embedding_dim=config["embedding_dim"],
                audio_options=config["audio"]["options"],
                text_options=config["text"]["options"],
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, ClapkitError) as error:
            raise CheckpointError(
                f"{folder / CONFIG}: cannot be used ({type(error).__name__}: {error}); "
                "name a finished train run or a model folder"
            ) from error
        model.load_weights(folder / WEIGHTS)
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


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
