"""Checkpoints of LAION-CLAP (``.pt``): HTSAT and RoBERTa, as their authors published them.

The architecture follows from the tensors' shapes. Long clips, of which the original takes a part at random, are read in
windows; short ones are repeated and padded as in training. Models with feature fusion are refused.

Reference: Wu et al., Large-scale contrastive language-audio pretraining with feature fusion, 2023, arXiv 2211.06687.
Deviations: waveforms are not rounded to 16 bits on the way in, which the original does for files and not for tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clapkit.encoders import _htsat
from clapkit.encoders._originals import assemble, count_below, read_scale, read_state, read_tokenizer, rename, shape_of
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import CheckpointError

AUDIO, TEXT = "audio_branch.", "text_branch."
ROBERTA = "FacebookAI/roberta-base"
MAX_TOKENS = 77  # length that captions are cut to in training and in the authors' demo
HEAD_WIDTH = 64  # of RoBERTa's attention; no shape tells it
FILTERS = (_htsat.Filters(48000, 50, 14000),)
LOGIT_SCALES = ("logit_scale_a", "logit_scale_t")

WEIGHT = r"\.(?:weight|bias)"
RULES = _htsat.rules(AUDIO) | {
    r"text_branch\.(embeddings\.(?:word|position|token_type)_embeddings\.weight)": r"text_tower.model.\1",
    r"text_branch\.(embeddings\.LayerNorm" + WEIGHT + ")": r"text_tower.model.\1",
    r"text_branch\.(encoder\.layer\.\d+\.attention\.self\.(?:query|key|value)" + WEIGHT + ")": r"text_tower.model.\1",
    r"text_branch\.(encoder\.layer\.\d+\.(?:attention\.)?output\.(?:dense|LayerNorm)" + WEIGHT + ")": r"text_tower.model.\1",
    r"text_branch\.(encoder\.layer\.\d+\.intermediate\.dense" + WEIGHT + ")": r"text_tower.model.\1",
    r"text_branch\.(pooler\.dense" + WEIGHT + ")": r"text_tower.model.\1",
    r"(audio|text)_projection\.0\.(weight|bias)": r"\1_head.linear1.\2",
    r"(audio|text)_projection\.2\.(weight|bias)": r"\1_head.linear2.\2",
}
# The second pair of projections is used by one of the losses alone; old versions of transformers stored the position numbers.
UNUSED = (
    *_htsat.unused(AUDIO),
    r"(audio|text)_transform\.sequential\.\d+" + WEIGHT,
    r"text_branch\.embeddings\.(position_ids|token_type_ids)",
    r"attn_mask",
)


def is_laion(state: Mapping[str, Any]) -> bool:
    """Whether tensors have the names of LAION-CLAP, of any architecture."""
    return any(name.startswith(AUDIO) for name in state)


def load(path: Path) -> DualEncoder:
    """The dual encoder of a checkpoint, in evaluation mode; no code in the file is run.

    The tokenizer is the ``tokenizer.json`` beside the file, else that of roberta-base on the Hub.

    Args:
        path: the ``.pt`` file.

    Raises:
        CheckpointError: if the file cannot be read, is of another architecture, or there is no tokenizer that fits.
    """
    state, origin = read_state(path), str(path)
    _refuse_others(state, origin)
    audio_config = _htsat.read_config(state, AUDIO, origin=origin)
    front_end = _htsat.read_front_end(
        state, AUDIO, sample_rate=48000, hop=480, filters=FILTERS, length_s=10, fill="repeatpad", origin=origin
    )
    text_config = _read_text_config(state, origin)
    scales = {name: read_scale(state, name, origin=origin) for name in LOGIT_SCALES}
    weights = {name: tensor for name, tensor in state.items() if name not in LOGIT_SCALES}
    tensors, unused = rename(weights, RULES, unused=UNUSED, origin=origin)
    tokenizer = read_tokenizer(path, hub_name=ROBERTA, num_rows=text_config["vocab_size"])
    model = assemble(
        path,
        _htsat.split_attention(tensors),
        unused=unused,
        logit_scale=scales[LOGIT_SCALES[0]],
        audio_options={"config": audio_config, "front_end": front_end},
        text_options={
            "config": text_config,
            "tokenizer": json.dumps(tokenizer, ensure_ascii=False),
            "tokenizer_config": {"pad_token": "<pad>", "eos_token": "</s>", "model_max_length": MAX_TOKENS},
            "pooling": "pooler",
            "max_tokens": MAX_TOKENS,
        },
        embedding_dim=shape_of(state, "audio_projection.2.weight", 2, origin=origin)[0],
        head="clap",
    )
    audio, text = scales.values()
    if not math.isclose(audio, text, rel_tol=1e-3):
        note = f"{path.name}: logit scales are {audio:.4g} (audio) and {text:.4g} (text); the first is kept"
        model.audio_tower.notes = [*model.audio_tower.notes, note]
    return model


def _refuse_others(state: Mapping[str, Tensor], origin: str) -> None:
    if not is_laion(state):
        raise CheckpointError(
            f"{origin}: holds {len(state)} tensors, none of them below {AUDIO}, so it is no checkpoint of LAION-CLAP; "
            "files of msclap end in .pth, models of transformers are folders"
        )
    if _htsat.is_fused(state, AUDIO):
        raise CheckpointError(
            f"{origin}: fuses features: its long clips are cropped at random, and a clip's embedding depends on the other "
            "clips of its batch; take a checkpoint without fusion, such as 630k-audioset-best.pt"
        )
    if f"{AUDIO}conv_block1.conv1.weight" in state:
        raise CheckpointError(f"{origin}: its audio branch is a PANN, which clapkit has not; take a checkpoint of HTSAT")
    types = state.get(f"{TEXT}embeddings.token_type_embeddings.weight")
    if types is None or types.shape[:1] != (1,):
        others = {"resblocks.": "the transformer of CLIP", "shared.": "BART"}
        found = [name for part, name in others.items() if any(key.startswith(TEXT + part) for key in state)]
        named = found[0] if found else "BERT" if types is not None else "unknown"
        raise CheckpointError(f"{origin}: its text branch is {named}, expected RoBERTa; take a published checkpoint")


def _read_text_config(state: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    vocab_size, width = shape_of(state, f"{TEXT}embeddings.word_embeddings.weight", 2, origin=origin)
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{origin}: its text branch is {width} wide, expected a multiple of {HEAD_WIDTH}; the weights are of another model"
        )
    return {
        "model_type": "clap_text_model",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": count_below(state, f"{TEXT}encoder.layer."),
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": shape_of(state, f"{TEXT}encoder.layer.0.intermediate.dense.weight", 2, origin=origin)[0],
        "max_position_embeddings": shape_of(state, f"{TEXT}embeddings.position_embeddings.weight", 2, origin=origin)[0],
        "type_vocab_size": 1,
        # As in roberta-base; the class of transformers for CLAP says 1e-12 by default.
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
