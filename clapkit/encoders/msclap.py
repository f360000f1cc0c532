"""Checkpoints of msclap, version 2023 (``.pth``): HTSAT at 44.1 kHz and GPT-2, as Microsoft published them.

The original hears seven seconds of a longer clip, chosen at random, joins the channels of a stereo file end to end, and takes
exclamation marks in a caption for padding. None of this is done here: long clips are read in windows, channels are averaged,
and a caption is read at its end whatever it says. Where none of the three matters, the embeddings are the original's.

Reference: Elizalde et al., Natural language supervision for general-purpose audio representations, 2023, arXiv 2309.05767.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clapkit.encoders import _htsat
from clapkit.encoders._originals import (
    assemble,
    count_below,
    read_scale,
    read_state,
    read_tokenizer,
    rename,
    shape_of,
    token_ids,
)
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import CheckpointError

AUDIO, TEXT = "audio_encoder.base.htsat.", "caption_encoder.base."
GPT2 = "openai-community/gpt2"
MAX_TOKENS = 77  # length that the original pads captions to
HEAD_WIDTH = 64  # of GPT-2's attention; no shape tells it
LOGIT_SCALE = "logit_scale"
# The original's configuration says 44.1 kHz and 8 kHz, but its HTSAT is built with the constants of another project, so that
# waveforms of 44.1 kHz meet filters made for 32 kHz. The checkpoint tells which.
FILTERS = (_htsat.Filters(32000, 50, 14000), _htsat.Filters(44100, 50, 8000))
# The original appends " <|endoftext|>" to a caption; the blank is a token of its own.
END = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "<|endoftext|>")

RULES = _htsat.rules(AUDIO) | {
    r"caption_encoder\.base\.((?:wte|wpe)\.weight|ln_f\.(?:weight|bias))": r"text_tower.model.\1",
    r"caption_encoder\.base\.(h\.\d+\.(?:ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(?:weight|bias))": (
        r"text_tower.model.\1"
    ),
    r"audio_encoder\.projection\.linear1\.weight": "audio_head.project.weight",
    r"audio_encoder\.projection\.linear2\.weight": "audio_head.refine.weight",
    r"audio_encoder\.projection\.layer_norm\.(weight|bias)": r"audio_head.norm.\1",
    r"caption_encoder\.projection\.linear1\.weight": "text_head.project.weight",
    r"caption_encoder\.projection\.linear2\.weight": "text_head.refine.weight",
    r"caption_encoder\.projection\.layer_norm\.(weight|bias)": r"text_head.norm.\1",
}
# Causal masks, which old versions of transformers stored.
UNUSED = (*_htsat.unused(AUDIO), r"caption_encoder\.base\.h\.\d+\.attn\.(bias|masked_bias)")


def is_msclap(state: Mapping[str, Any]) -> bool:
    """Whether tensors have the names of msclap, of any version."""
    return any(name.startswith(("audio_encoder.base.", "clap.base.")) for name in state)


def load(path: Path) -> DualEncoder:
    """The dual encoder of a checkpoint, in evaluation mode; no code in the file is run.

    The tokenizer is the ``tokenizer.json`` beside the file, else that of gpt2 on the Hub.

    Args:
        path: the ``.pth`` file.

    Raises:
        CheckpointError: if the file cannot be read, is of another architecture, or there is no tokenizer that fits.
    """
    state, origin = read_state(path), str(path)
    _refuse_others(state, origin)
    audio_config = _htsat.read_config(state, AUDIO, origin=origin)
    front_end = _htsat.read_front_end(
        state, AUDIO, sample_rate=44100, hop=320, filters=FILTERS, length_s=7, fill="repeat", origin=origin
    )
    text_config = _read_text_config(state, origin)
    logit_scale = read_scale(state, LOGIT_SCALE, origin=origin)
    weights = {name: tensor for name, tensor in state.items() if name != LOGIT_SCALE}
    tensors, unused = rename(weights, RULES, unused=UNUSED, origin=origin)
    embedding_dim = shape_of(state, "audio_encoder.projection.linear2.weight", 2, origin=origin)[0]
    # The original's projections have no biases.
    for side in ("audio", "text"):
        tensors |= {f"{side}_head.{layer}.bias": torch.zeros(embedding_dim) for layer in ("project", "refine")}
    tokenizer = read_tokenizer(path, hub_name=GPT2, num_rows=text_config["vocab_size"])
    return assemble(
        path,
        _htsat.split_attention(tensors),
        unused=unused,
        logit_scale=logit_scale,
        audio_options={"config": audio_config, "front_end": front_end},
        text_options={
            "config": text_config,
            "tokenizer": json.dumps(_append_end(tokenizer, origin), ensure_ascii=False),
            "tokenizer_config": {"pad_token": END[1], "eos_token": END[1], "model_max_length": MAX_TOKENS},
            "pooling": "last",
            "max_tokens": MAX_TOKENS,
        },
        embedding_dim=embedding_dim,
        head="mlp",
    )


def _refuse_others(state: Mapping[str, Tensor], origin: str) -> None:
    if not is_msclap(state):
        raise CheckpointError(
            f"{origin}: holds {len(state)} tensors, none of them below {AUDIO}, so it is no checkpoint of msclap; "
            "files of LAION-CLAP end in .pt, models of transformers are folders"
        )
    if any(name.startswith(("clap.", "clap_project.", "gpt.")) for name in state):
        raise CheckpointError(
            f"{origin}: is clapcap, which writes captions and has no text encoder; take CLAP_weights_2023.pth"
        )
    if not any(name.startswith(AUDIO) for name in state):
        raise CheckpointError(
            f"{origin}: is msclap 2022 (CNN14 and BERT), whose audio encoder clapkit has not; take CLAP_weights_2023.pth"
        )


def _read_text_config(state: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    vocab_size, width = shape_of(state, f"{TEXT}wte.weight", 2, origin=origin)
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{origin}: its text encoder is {width} wide, expected a multiple of {HEAD_WIDTH}; the weights are of another model"
        )
    return {
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": shape_of(state, f"{TEXT}wpe.weight", 2, origin=origin)[0],
        "n_embd": width,
        "n_layer": count_below(state, f"{TEXT}h."),
        "n_head": width // HEAD_WIDTH,
        "n_inner": shape_of(state, f"{TEXT}h.0.mlp.c_fc.weight", 2, origin=origin)[1],
        "bos_token_id": vocab_size - 1,
        "eos_token_id": vocab_size - 1,
        "use_cache": False,
    }


def _append_end(tokenizer: dict[str, Any], origin: str) -> dict[str, Any]:
    """The tokenizer with the original's ending behind every sentence, also where it is cut."""
    ids = token_ids(tokenizer)
    lacking = [token for token in END if token not in ids]
    if lacking:
        raise CheckpointError(
            f"{origin}: its tokenizer has no token {lacking[0]!r}; put the tokenizer.json of {GPT2} beside it"
        )
    ending = [{"SpecialToken": {"id": token, "type_id": 0}} for token in END]
    processor = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, *ending],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}, *ending],
        "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in END},
    }
    return tokenizer | {"post_processor": processor}
