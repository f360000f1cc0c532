"""The dual encoder: an audio tower and a text tower, projected into one space.

A saved model is a folder with ``model.safetensors`` and ``config.json``; the two rebuild it alone, the tokenizer included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
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
from clapkit.encoders.text._pieces import LongCaptions, expect_long_captions, split_captions
from clapkit.encoders.text._pooling import mean_of_pieces
from clapkit.encoders.window_fusion import (
    Fusion,
    WindowAttention,
    equal_weights,
    expect_fusion,
    expect_one_window,
    expect_windows,
    weighted_direction,
)
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
        long_captions: ``cut`` those that are longer than the text tower reads, or ``split`` them and embed all of them.
        fusion: how several windows of a clip become one vector; None is ``mean``.

    Raises:
        UnknownNameError: if there is no such tower, option, head or fusion, or ``long_captions`` is neither.
        ConfigError: if long captions are to be split and the text tower does not count tokens.
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
        long_captions: LongCaptions = "cut",
        fusion: Fusion | None = None,
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
        self.captions_split = 0  # so far
        self.long_captions = long_captions
        self.window_attention: WindowAttention | None = None
        expect_fusion(fusion or "mean")
        if fusion == "attention":
            self.add_window_attention()

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
        ``fusion`` is there where it is not the mean.
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

    @property
    def long_captions(self) -> LongCaptions:
        """What becomes of captions that are longer than the text tower reads; may be set.

        ``cut`` drops what is too long. ``split`` divides them (``text._pieces``) and takes the mean of the pieces' unit-norm
        embeddings, weighted by their tokens and brought to unit norm; ``captions_split`` counts them.
        """
        name: LongCaptions = self._config.get("long_captions", "cut")
        return name

    @long_captions.setter
    def long_captions(self, name: LongCaptions) -> None:
        if expect_long_captions(name) == "cut":
            self._config.pop("long_captions", None)  # as models were saved before there was a choice
            return
        if not (hasattr(self.text_tower, "count_tokens") and hasattr(self.text_tower, "max_tokens")):
            raise ConfigError(
                f"--long-captions split: the text tower {self.tower_names['text']} does not count its tokens; leave it out, "
                "or give the tower max_tokens and count_tokens"
            )
        self._config["long_captions"] = name

    def long_among(self, captions: Sequence[str]) -> tuple[int, int] | None:
        """How many of these captions would be cut and how many split, without embedding them; None if the tower cannot tell."""
        tower = self.text_tower
        if not (hasattr(tower, "count_tokens") and hasattr(tower, "max_tokens")):
            return None
        if self.long_captions == "cut":
            return sum(count > tower.max_tokens for count in tower.count_tokens(captions)), 0
        pieces = split_captions(captions, tower.count_tokens, max_tokens=tower.max_tokens)
        return sum(count > tower.max_tokens for count in tower.count_tokens(pieces.texts)), pieces.num_split

    @property
    def fusion(self) -> Fusion:
        """How several windows of a clip become one vector; see ``add_window_attention``."""
        return "mean" if self.window_attention is None else "attention"

    def add_window_attention(self) -> None:
        """Weigh the windows of a clip by an attention that is learned and starts as their mean; nothing if there is one.

        Its hidden layer is drawn from torch's global generator.
        """
        if self.window_attention is None:
            self.window_attention = WindowAttention(self.embedding_dim).to(self.device).train(self.training)
            self._config["fusion"] = "attention"

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

    def encode_audio(
        self, waveform: Tensor, num_samples: Tensor, *, features: bool = False, keep_windows: bool = False
    ) -> Tensor:
        """Embed B clips; gives unit-norm float32 [B, D].

        Args:
            waveform: float32 [B, T], or [B, W, T] with several windows of a clip, which are embedded alone and then fused.
            num_samples: int64 [B], how many samples are real; [B, W], 0 where a clip has no such window.
            features: whether embeddings come as the head gives them, of any length.
            keep_windows: whether windows are not fused: [B, W, D], 0 where there is none.

        Raises:
            ConfigError: if features of several windows are asked for, or windows of one.
            ShapeError: if the shapes do not fit, or a clip has no window.
        """
        if waveform.ndim == 2:
            expect_one_window(keep_windows=keep_windows)
            embedded: Tensor = self.audio_head(self.audio_tower(waveform, num_samples)).float()
            return embedded if features else functional.normalize(embedded, dim=1)
        is_window = num_samples > 0  # [B, W]
        expect_windows(waveform, is_window, features=features)
        heard = self.encode_audio(waveform[is_window], num_samples[is_window])  # [windows of all clips, D]
        windows = heard.new_zeros(*is_window.shape, self.embedding_dim)  # [B, W, D]
        windows[is_window] = heard
        return windows if keep_windows else self.fuse_windows(windows, is_window)

    def fuse_windows(self, windows: Tensor, is_window: Tensor) -> Tensor:
        """One unit-norm vector of each clip, float32 [B, D], whatever order its windows are in.

        Args:
            windows: unit norm [B, W, D].
            is_window: bool [B, W], which of them are there; at least one of each clip.
        """
        weights = self.window_weights(windows, is_window)
        return weighted_direction(windows.float(), weights)

    def window_weights(self, windows: Tensor, is_window: Tensor) -> Tensor:
        """How much each window of a clip counts, float32 [B, W], rows sum to 1; arguments as of ``fuse_windows``."""
        if self.window_attention is None:
            return equal_weights(is_window)
        with torch.autocast(windows.device.type, enabled=False):
            weights: Tensor = self.window_attention(windows.float(), is_window)
            return weights

    def encode_text(self, captions: Sequence[str], languages: Sequence[str] | None = None, *, features: bool = False) -> Tensor:
        """Embed B sentences; gives unit-norm float32 [B, D].

        Args:
            captions: the sentences.
            languages: ISO 639-1 tag of each, for towers that ask for it; None is English.
            features: whether they come as the head gives them, of any length.
        """
        embedded = self._whole(self._project_text, captions, languages)
        return embedded if features else functional.normalize(embedded, dim=1)

    def text_features(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """B sentences as the text tower gives them, before the projection head: [B, d], of any norm; arguments as above.

        What becomes of long captions is what ``long_captions`` says.
        """
        return self._whole(self._text_features, captions, languages)

    def _project_text(self, captions: Sequence[str], languages: Sequence[str] | None) -> Tensor:
        """B sentences as the head gives them [B, D], in one call of the tower."""
        projected: Tensor = self.text_head(self._text_features(captions, languages)).float()
        return projected

    def _whole(
        self,
        read: Callable[[Sequence[str], Sequence[str] | None], Tensor],
        captions: Sequence[str],
        languages: Sequence[str] | None,
    ) -> Tensor:
        """What ``read`` makes of B sentences; of those that are to be split from their pieces, all of which are in one call."""
        if self.long_captions == "cut":
            return read(captions, languages)
        tower = self.text_tower
        pieces = split_captions(captions, tower.count_tokens, max_tokens=tower.max_tokens)
        if not pieces.num_split:
            return read(pieces.texts, languages)
        self.captions_split += pieces.num_split
        if languages is not None:
            languages = [tag for tag, count in zip(languages, pieces.counts, strict=True) for _ in range(count)]
        return mean_of_pieces(read(pieces.texts, languages), pieces.counts, pieces.tokens)

    def _text_features(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        asked = [languages or ["en"] * len(captions)] if self.takes_languages else []
        features: Tensor = self.text_tower(captions, *asked)
        return features

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor,
        captions: Sequence[str],
        languages: Sequence[str] | None = None,
        *,
        features: bool = False,
        keep_windows: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Embed C clips and B captions; gives audio [C, D] and text [B, D]; last arguments as in ``encode_audio``."""
        audio = self.encode_audio(waveform, num_samples, features=features, keep_windows=keep_windows)
        return audio, self.encode_text(captions, languages, features=features)

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
                    long_captions=config.get("long_captions", "cut"),
                    fusion=config.get("fusion"),
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
