"""Text towers of the library transformers: BERT and its relatives, T5, GPT-2, the text half of CLAP, SONAR and NLLB.

The architecture, the tokenizer and the pooling come from the model's folder; a saved clapkit model holds all three.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from clapkit.encoders.pretrained import CONFIG, find, load_transformer, quiet_libraries, read_json
from clapkit.encoders.text._hf_families import FAMILIES, Family
from clapkit.encoders.text._hf_tokenizer import HfTokenizer, read_settings, read_tokenizer
from clapkit.encoders.text._pooling import Pooling, pool, read_sentence_transformer
from clapkit.errors import CheckpointError, ConfigError

WHOLE_CLAP = "clap"
# Key of a configuration that says where it is from, not what the model is.
ORIGIN_KEY = "_name_or_path"


class HfTextTower(nn.Module):
    """An encoder of transformers with its tokenizer, pooled to one vector per sentence.

    Args:
        model: the encoder; nothing in it is left unused.
        family: what is known of its type.
        tokenizer: its tokenizer.
        pooling: how the tokens become one vector.
        rebuild_options: that make the tower again without any file.
        notes: what the user should know.

    Attributes:
        embedding_dim: width of the output.
        takes_languages: whether ``forward`` wants the language of every sentence.
        model: the module of transformers.
        tokenizer: the tokenizer at work.
        pooling: how the tokens become one vector.
        rebuild_options: see above.
        notes: see above.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        tokenizer: HfTokenizer,
        *,
        pooling: Pooling,
        rebuild_options: Mapping[str, Any],
        notes: Sequence[str],
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self.takes_languages = family.takes_languages
        self.embedding_dim: int = cast(Any, model).config.hidden_size
        self.rebuild_options, self.notes = dict(rebuild_options), list(notes)
        self._layers = family.layers

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks from input to output."""
        return list(attrgetter(self._layers)(self.model))

    @property
    def max_tokens(self) -> int:
        """Longer captions are cut to this many tokens."""
        return self.tokenizer.max_tokens

    @property
    def num_cut(self) -> int:
        """Captions cut so far."""
        return self.tokenizer.num_cut

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before anything is cut, the special ones included."""
        return self.tokenizer.count(texts)

    def forward(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """Encode B sentences to [B, embedding_dim].

        Args:
            captions: the sentences.
            languages: ISO 639-1 tag of each, where the tower ``takes_languages``; None is English.

        Raises:
            ConfigError: if a language is unknown.
        """
        device = next(self.model.parameters()).device
        ids, real = self.tokenizer.encode(captions, languages, device)  # [B, L]
        output = self.model(input_ids=ids, attention_mask=real.long())
        if self.pooling == "pooler":
            vectors: Tensor = output.pooler_output
            return vectors
        return pool(output.last_hidden_state, real, self.pooling)


def build(
    *,
    captions: Sequence[str] = (),
    weights: str | None = None,
    config: dict[str, Any] | None = None,
    tokenizer: str | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    pooling: Literal["auto", "mean", "cls", "last", "pooler"] = "auto",
    max_tokens: int | None = None,
) -> HfTextTower:
    """A tower from a folder or a name on the Hub, or from a configuration and a tokenizer, with random weights.

    Args:
        captions: not used; the tokenizer is the model's own.
        weights: folder, or owner/name on the Hugging Face Hub.
        config: content of ``config.json``, instead of ``weights``.
        tokenizer: text of ``tokenizer.json``; of the folder, if not given.
        tokenizer_config: content of ``tokenizer_config.json``; likewise. ``append_eos`` (our own key) puts the end token behind
            every sentence.
        pooling: ``auto`` is what sentence-transformers says in the folder, else the model's own pooler for CLAP, the last token
            for GPT-2, the mean over the tokens for all others.
        max_tokens: cut captions at fewer tokens than the model takes.

    Raises:
        CheckpointError: if there are no such weights, or they or the tokenizer cannot be used.
        ConfigError: if the options do not fit each other.
    """
    for key, value in (("config", config), ("tokenizer_config", tokenizer_config)):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"option {key}: got text, expected a JSON object; name a folder with --text-weights instead")
    if (weights is None) == (config is None):
        found = "neither" if weights is None else "both"
        raise ConfigError(f"text encoder hf: got {found} of weights and config; name a folder or Hub model with --text-weights")
    if config is not None:
        if tokenizer is None:
            raise ConfigError("text encoder hf: got a config without a tokenizer; give the text of its tokenizer.json as well")
        family = _find_family(config, "text encoder hf")
        chosen = _choose_pooling(family, pooling, stated=None)
        model, notes = _make(family, config, chosen), list[str]()
    else:
        folder = _find_folder(str(weights))
        family = _find_family(read_json(folder / CONFIG), str(folder))
        stated, notes = read_sentence_transformer(folder) if pooling == "auto" else (None, [])
        chosen = _choose_pooling(family, pooling, stated=stated)
        model, unused = _load(family, folder, chosen)
        notes = [*notes, *unused]
        if tokenizer is None:
            tokenizer, found_settings = read_tokenizer(folder)
            tokenizer_config = found_settings | (tokenizer_config or {})
    settings = read_settings(tokenizer_config or {})
    notes += _keep_all_layers(model)
    own = cast(Any, model).config
    # GPT-2 would keep keys and values for a next token, and count them twice where a layer runs again for its gradient.
    own.use_cache = False
    working = HfTokenizer(
        tokenizer,
        settings=settings,
        positions=_count_positions(family, own),
        vocab_size=own.vocab_size,
        pad_id=own.pad_token_id,
        eos_id=own.eos_token_id,
        with_languages=family.takes_languages,
        max_tokens=max_tokens,
    )
    rebuild_options = {
        "weights": None,
        "config": _to_json(own),
        "tokenizer": tokenizer,
        "tokenizer_config": settings,
        "pooling": chosen,
        "max_tokens": working.max_tokens,
    }
    tower = HfTextTower(model, family, working, pooling=chosen, rebuild_options=rebuild_options, notes=notes)
    return tower.eval()


def _find_folder(weights: str) -> Path:
    folder = find(weights)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, expected a folder with {CONFIG}, weights and tokenizer; name the folder")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: has no {CONFIG}, so its architecture is not known; name a folder that has one")
    return folder


def _find_family(config: Mapping[str, Any], origin: str) -> Family:
    if config.get("auto_map"):
        raise CheckpointError(
            f"{origin}: the model needs code of its author (auto_map), which is not run; name a model that transformers carries"
        )
    model_type = config.get("model_type")
    if model_type == WHOLE_CLAP:
        return FAMILIES["clap_text_model"]
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{origin}: model type {model_type!r} is no text encoder that clapkit knows; expected one of "
            f"{', '.join(sorted([WHOLE_CLAP, *FAMILIES]))}; audio models belong to --audio-weights"
        )
    return FAMILIES[model_type]


def _choose_pooling(family: Family, wanted: str, *, stated: Pooling | None) -> Pooling:
    if wanted == "pooler" and not family.has_pooler:
        raise ConfigError(f"option pooling=pooler: {family.model} has no pooler; expected mean, cls or last")
    return stated or family.pooling if wanted == "auto" else cast(Pooling, wanted)


def _model_class(family: Family, name: str | None = None) -> Any:
    module = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    return getattr(module, name or family.model)


def _pooler_settings(family: Family, pooling: Pooling) -> dict[str, bool]:
    # A pooler that nothing reads would never get a gradient.
    return {"add_pooling_layer": pooling == "pooler"} if family.has_pooler else {}


def _make(family: Family, config: Mapping[str, Any], pooling: Pooling) -> nn.Module:
    """The encoder with random weights."""
    from huggingface_hub.errors import StrictDataclassError

    model_class = _model_class(family)
    try:
        with quiet_libraries():
            own = config["text_config"] if config["model_type"] == WHOLE_CLAP else config
            parsed = model_class.config_class.from_dict(dict(own))
            parsed.dtype = torch.float32
            model: nn.Module = model_class(parsed, **_pooler_settings(family, pooling))
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"text encoder hf: the config is none of {family.model} ({reason}); give the content of its config.json"
        ) from error
    return model


def _load(family: Family, folder: Path, pooling: Pooling) -> tuple[nn.Module, list[str]]:
    """The encoder with the weights of a folder; where these are of a larger model, the part that reads text."""
    config = read_json(folder / CONFIG)
    if config["model_type"] == WHOLE_CLAP:
        whole, notes = load_transformer(_model_class(family, "ClapTextModelWithProjection"), folder)
        text_model = cast(Any, whole).text_model
        if pooling != "pooler":
            text_model.pooler = None
        return text_model, notes
    if family.model == "M2M100Encoder" and "M2M100Encoder" not in (config.get("architectures") or ()):
        # Loaded as an encoder, a folder of the whole model would leave all of it random.
        whole, notes = load_transformer(_model_class(family, "M2M100Model"), folder)
        return cast(Any, whole).encoder, notes
    return load_transformer(_model_class(family), folder, **_pooler_settings(family, pooling))


def _keep_all_layers(model: nn.Module) -> list[str]:
    """Turn LayerDrop off: it leaves whole layers without a gradient, which processes that train together cannot have."""
    share = getattr(model, "layerdrop", 0)
    if not share:
        return []
    encoder = cast(Any, model)
    encoder.layerdrop = encoder.config.encoder_layerdrop = 0.0
    return [f"text encoder hf: LayerDrop of {share} is turned off"]


def _count_positions(family: Family, config: Any) -> int | None:
    if family.positions == "relative":
        return None
    positions: int = config.max_position_embeddings
    return positions - config.pad_token_id - 1 if family.positions == "after_padding" else positions


def _to_json(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    content["dtype"] = "float32"
    return {key: value for key, value in content.items() if key != ORIGIN_KEY}
