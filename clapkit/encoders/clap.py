"""Whole CLAP models of the library transformers: in from a folder, out to a folder.

``ClapModel`` is two towers and two projections, as a ``DualEncoder`` is; loading and writing move the same tensors under two
sets of names. What a folder of transformers has beside the weights (front end, tokenizer) goes into the towers' options on the
way in and is written back on the way out.

Reference: Wu et al., Large-scale contrastive language-audio pretraining, 2023, arXiv 2211.06687.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from clapkit.encoders._folders import whole_folder
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import CONFIG, TOKENIZER
from clapkit.encoders.pretrained import WithoutDrawing, load_strictly, load_transformer, name_of, quiet_libraries, read_json
from clapkit.encoders.text._hf_tokenizer import read_tokenizer
from clapkit.errors import CheckpointError, ClapkitError, ConfigError

# The key map: parts of a ClapModel, and the modules of a DualEncoder that hold the same tensors under the same names.
PARTS = {
    "audio_model": "audio_tower.model",
    "audio_projection": "audio_head",
    "text_model": "text_tower.model",
    "text_projection": "text_head",
}
MODEL_TYPE = "clap"
TOWER_TYPES = {"audio": "clap_audio_model", "text": "clap_text_model"}
LOGIT_SCALES = ("logit_scale_a", "logit_scale_t")
# Where nothing else is known, as in Radford et al., 2021 (CLIP): a temperature of 0.07.
START_SCALE = 1 / 0.07
FRONT_END, TOKENIZER_CONFIG = "preprocessor_config.json", "tokenizer_config.json"


def from_transformers(folder: Path) -> DualEncoder:
    """A dual encoder that embeds as the ``ClapModel`` of a folder does, in evaluation mode.

    Short clips are repeated and padded as the folder's feature extractor does it. Long ones it would crop at random; a dual
    encoder is given windows instead. The scale of the checkpoint's logits becomes ``config["logit_scale"]``.

    Args:
        folder: with configuration, weights (safetensors, or an older pickle, of which no code is run), front end, tokenizer.

    Raises:
        CheckpointError: if a file is missing or damaged, the parts do not fit each other, or the model fuses views.
    """
    from transformers import ClapModel

    _refuse_other_models(read_json(folder / CONFIG), folder)
    clap: Any
    clap, notes = load_transformer(ClapModel, folder)
    tokenizer, settings = read_tokenizer(folder)
    try:
        with WithoutDrawing():
            model = DualEncoder(
                "hf",
                "hf",
                embedding_dim=clap.config.projection_dim,
                audio_options={"config": clap.config.audio_config.to_dict(), "front_end": _read_front_end(folder)},
                text_options={
                    "config": clap.config.text_config.to_dict(),
                    "tokenizer": tokenizer,
                    "tokenizer_config": settings,
                },
                audio_head="clap",
                text_head="clap",
            )
    except ClapkitError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    _expect_padding(model.config["text"]["options"], folder)
    tensors = clap.state_dict()
    for part, module in PARTS.items():
        load_strictly(model.get_submodule(module), _below(part, tensors), origin=f"{folder}, {part}")
    audio_scale, text_scale = (math.exp(tensors[name]) for name in LOGIT_SCALES)
    if not math.isclose(audio_scale, text_scale, rel_tol=1e-3):
        notes = [
            *notes,
            f"{name_of(folder)}: has two logit scales, {audio_scale:.4g} (audio) and {text_scale:.4g} (text); training starts "
            "from the first",
        ]
    model.config["logit_scale"] = audio_scale
    model.audio_tower.notes = [*getattr(model.audio_tower, "notes", ()), *notes]
    return model.eval()


def exportable(model: DualEncoder) -> str | None:
    """Why a model cannot be written for transformers, in one line; None if it can."""
    reason = next(filter(None, (_misfit(side, model.config[side]) for side in TOWER_TYPES)), None)
    if reason is None and any("lora_" in name for name, _ in model.named_parameters()):
        reason = "the towers carry adapters, which a ClapModel has no place for; merge them into the weights first"
    if reason is None and model.fusion == "attention":
        reason = "it puts windows together by an attention of its own, which a ClapModel has no place for"
    if reason is None and model.long_captions == "split":
        reason = "it reads long captions in parts, and a ClapModel would cut them; train with --long-captions cut"
    return None if reason is None else f"{reason} (the folder model/ of a train run is the portable form of any model)"


def to_transformers(model: DualEncoder, folder: Path, *, logit_scale: float | None = None) -> None:
    """Write a model as a folder that ``ClapModel``, ``ClapProcessor`` and ``AutoTokenizer`` load and that embeds the same.

    Args:
        model: of the hf towers of a ClapModel with clap heads, as one is that started from one.
        folder: appears when it is complete; an earlier export there is replaced then.
        logit_scale: factor on cosines, > 0, that becomes both of a ClapModel's scales; default: the one that the model's
            weights came with, else 1 / 0.07.

    Raises:
        ConfigError: if the model cannot be written so, or the folder holds something else.
        CheckpointError: if the weights are none of a ClapModel.
    """
    from transformers import ClapFeatureExtractor

    reason = exportable(model)
    if reason is not None:
        raise ConfigError(f"export hf: {reason}")
    if folder.exists() and not _may_be_replaced(folder):
        raise ConfigError(f"export hf: {folder} is something else than an earlier export; name another folder")
    scale = model.config.get("logit_scale", START_SCALE) if logit_scale is None else logit_scale
    if not 0 < scale < math.inf:
        raise ConfigError(f"export hf: logit_scale {scale}, expected more than 0, as its logarithm is what a ClapModel stores")
    clap = _to_clap(model, scale)
    extractor: Any = ClapFeatureExtractor.from_dict(model.config["audio"]["options"]["front_end"])
    with whole_folder(folder) as temporary:
        with quiet_libraries():
            clap.save_pretrained(temporary)
            extractor.save_pretrained(temporary)
        options = model.config["text"]["options"]
        (temporary / TOKENIZER).write_text(options["tokenizer"], encoding="utf-8")
        settings = json.dumps(_tokenizer_config(options), ensure_ascii=False, indent=2, sort_keys=True)
        (temporary / TOKENIZER_CONFIG).write_text(settings, encoding="utf-8")


def _refuse_other_models(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{folder}: is a model of type {config.get('model_type')!r}, expected {MODEL_TYPE!r}; name another"
        )
    audio, text = (part if isinstance(part := config.get(key), dict) else {} for key in ("audio_config", "text_config"))
    if audio.get("enable_fusion"):
        raise CheckpointError(
            f"{folder}: is a fused CLAP (enable_fusion), which hears long audio through random crops and treats one random "
            "clip of a batch as long, so that no embedding can be repeated; name an unfused one (laion/clap-htsat-unfused)"
        )
    for part in (config, audio, text):
        activation = part.get("projection_hidden_act", "relu")
        if activation != "relu":
            raise CheckpointError(
                f"{folder}: its projection has the activation {activation!r}, expected 'relu'; name another model"
            )


def _expect_padding(text_options: Mapping[str, Any], folder: Path) -> None:
    """Make sure that the tokenizer pads as the model expects: its positions are counted from the id of the padding."""
    token = text_options["tokenizer_config"].get("pad_token")
    found, expected = (
        Tokenizer.from_str(text_options["tokenizer"]).token_to_id(token or ""),
        text_options["config"]["pad_token_id"],
    )
    if token is not None and found != expected:
        raise CheckpointError(
            f"{folder}: the tokenizer pads with {token} (id {found}), but the text model expects id {expected}; "
            "it is another model's tokenizer, restore its own"
        )


def _read_front_end(folder: Path) -> dict[str, Any]:
    """The numbers of the feature extractor, which newer folders keep inside ``processor_config.json``."""
    from transformers import ClapFeatureExtractor

    try:
        with quiet_libraries():
            extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder}: has no {FRONT_END} that can be used ({reason}); restore the file") from error
    content: dict[str, Any] = json.loads(extractor.to_json_string())
    return content


def _below(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part, under its own names."""
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def _misfit(side: str, part: Mapping[str, Any]) -> str | None:
    """Why a tower and its head are not those of a ClapModel."""
    options, expected = part["options"], TOWER_TYPES[side]
    config = options.get("config") if part["encoder"] == "hf" else None
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != expected:
        named = part["encoder"] if found is None else f"{part['encoder']} ({found})"
        return (
            f"the {side} tower is {named}, but a ClapModel has hf ({expected}); only models that start from one can be written"
        )
    if part["head"] != "clap":
        return f"the {side} head is {part['head']}, but a ClapModel has clap; only models that start from one can be written"
    pooling = options.get("pooling", "auto")
    if pooling not in ("auto", "pooler"):
        return f"the {side} tower has pooling={pooling}, but a ClapModel pools in its own way"
    length_s = options.get("front_end", {}).get("max_length_s")
    window_s = options.get("window_s", length_s)
    if window_s != length_s:
        return f"the {side} tower hears {window_s} s, but its front end, which is written, {length_s} s"
    return None


def _may_be_replaced(folder: Path) -> bool:
    """Whether a folder is empty or an earlier export."""
    if (folder / CONFIG).is_file():
        return read_json(folder / CONFIG).get("model_type") == MODEL_TYPE
    return folder.is_dir() and not any(folder.iterdir())


def _to_clap(model: DualEncoder, logit_scale: float) -> Any:
    """The same model as a ``ClapModel``."""
    from transformers import ClapConfig, ClapModel

    config = ClapConfig(
        audio_config=model.config["audio"]["options"]["config"],
        text_config=model.config["text"]["options"]["config"],
        projection_dim=model.embedding_dim,
        logit_scale_init_value=logit_scale,
    )
    with WithoutDrawing():
        clap = ClapModel(config)
    tensors = {name: torch.tensor(math.log(logit_scale)) for name in LOGIT_SCALES}
    for part, module in PARTS.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in model.get_submodule(module).state_dict().items()}
    load_strictly(clap, tensors, origin="export hf")
    return clap


def _tokenizer_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``tokenizer.json`` leaves open: the roles of the special tokens, which the text model knows by id, and a length."""
    tokenizer = Tokenizer.from_str(options["tokenizer"])
    roles = {"bos": "bos_token_id", "cls": "bos_token_id", "eos": "eos_token_id", "sep": "eos_token_id", "pad": "pad_token_id"}
    tokens = {f"{role}_token": tokenizer.id_to_token(options["config"][key]) for role, key in roles.items()}
    tokens |= {f"{role}_token": f"<{role}>" for role in ("unk", "mask") if tokenizer.token_to_id(f"<{role}>") is not None}
    stored = {key: value for key, value in (options.get("tokenizer_config") or {}).items() if key != "append_eos"}
    length = {"model_max_length": options["max_tokens"]} if "max_tokens" in options else {}
    # This class takes tokenizer.json as it is; that of RoBERTa would put it together anew.
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | tokens | stored | length
