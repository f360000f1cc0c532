"""What the loaders of other projects' checkpoints share: reading them safely, renaming strictly, finding the tokenizer.

A checkpoint's tensors are taken over by an explicit key map. A tensor that the map does not know is an error, and so is one
that the model needs and the file does not have; the few that are known and not needed are listed in a note.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import TOKENIZER
from clapkit.encoders.pretrained import COMPUTED_BUFFERS, find, load_strictly, read_tensors, shorten
from clapkit.errors import CheckpointError, ClapkitError

STATES = ("state_dict", "model")  # where the tensors lie, unless they are the whole content
MOST_LOG_SCALE = 20.0  # training stops at ln 100
WRAPPER = "module."  # put before all names by DataParallel


class Ignored:
    """Stands for a number of numpy, such as a best score beside the weights, which nothing reads; numpy is not called."""

    def __init__(self, *parts: object) -> None:
        """Drop what numpy would make a number of."""

    def __setstate__(self, state: object) -> None:
        """Likewise."""


NUMPY_NUMBERS = tuple(
    (Ignored, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the prefix that a training on several GPUs leaves.

    Raises:
        CheckpointError: if the file is missing, damaged, could run code, or holds something else than tensors.
    """
    content = read_tensors(path, stand_ins=NUMPY_NUMBERS)
    state = next((content[key] for key in STATES if isinstance(content.get(key), Mapping)), content)
    if not state or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: holds no named tensors; name a checkpoint as its authors published it")
    odd = next((name for name, tensor in state.items() if not isinstance(tensor, Tensor)), None)
    if odd is not None:
        raise CheckpointError(
            f"{path}: {odd} is {type(state[odd]).__name__}, expected a tensor; name a checkpoint as its authors published it"
        )
    wrapped = all(name.startswith(WRAPPER) for name in state)
    return {name.removeprefix(WRAPPER) if wrapped else name: tensor for name, tensor in state.items()}


def rename(
    state: Mapping[str, Tensor], rules: Mapping[str, str], *, unused: Sequence[str], origin: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names.

    Args:
        state: under the names of the checkpoint.
        rules: pattern of a whole name -> our name, which may refer to groups.
        unused: patterns of whole names that the model does without.
        origin: where they are from, for messages.

    Returns:
        The tensors, and the names of those not used.

    Raises:
        CheckpointError: if a name fits no pattern.
    """
    moved, left, unknown = dict[str, Tensor](), list[str](), list[str]()
    for name, tensor in state.items():
        found = next((match.expand(ours) for rule, ours in rules.items() if (match := re.fullmatch(rule, name))), None)
        if found is not None:
            moved[found] = tensor
        elif any(re.fullmatch(pattern, name) for pattern in unused):
            left.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{origin}: {len(unknown)} tensors are no part of the model (first {min(unknown)}); "
            "name a checkpoint as its authors published it"
        )
    return moved, sorted(left)


def shape_of(state: Mapping[str, Tensor], name: str, num_axes: int, *, origin: str) -> list[int]:
    """Shape of a tensor that tells the architecture.

    Raises:
        CheckpointError: if there is no such tensor, or it has another number of axes.
    """
    if name not in state:
        raise CheckpointError(f"{origin}: has no tensor {name}, so its architecture is not known; name a whole checkpoint")
    shape = list(state[name].shape)
    if len(shape) != num_axes or 0 in shape:
        raise CheckpointError(f"{origin}: {name} has shape {shape}, expected {num_axes} axes; the weights are of another model")
    return shape


def read_scale(state: Mapping[str, Tensor], name: str, *, origin: str) -> float:
    """The factor on cosines, of which checkpoints hold the logarithm.

    Raises:
        CheckpointError: if there is none, or it is no number of a sensible size.
    """
    shape_of(state, name, 0, origin=origin)
    logarithm = float(state[name])
    if not abs(logarithm) < MOST_LOG_SCALE:
        raise CheckpointError(
            f"{origin}: {name} is {logarithm}, expected a number below {MOST_LOG_SCALE}; the file is damaged, copy it again"
        )
    return math.exp(logarithm)


def count_below(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow a prefix: the layers of a stack."""
    return len({number[1] for name in state if (number := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def read_tokenizer(checkpoint: Path, *, hub_name: str, num_rows: int) -> dict[str, Any]:
    """The tokenizer of a checkpoint that holds none: ``tokenizer.json`` beside it, else that of a model on the Hub.

    Args:
        checkpoint: the file.
        hub_name: owner/name.
        num_rows: of the embedding table, one for every token.

    Raises:
        CheckpointError: if there is none, or it is of another model.
    """
    path = checkpoint.with_name(TOKENIZER)
    if not path.is_file():
        try:
            path = find(hub_name, files=(TOKENIZER,)) / TOKENIZER
        except CheckpointError as error:
            raise CheckpointError(
                f"{checkpoint}: holds no tokenizer, and the Hub did not give that of {hub_name}; put the {TOKENIZER} of "
                f"{hub_name} beside the file"
            ) from error
    try:
        tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = max(token_ids(tokenizer).values()) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path}: cannot be read as a tokenizer ({reason}); put the {TOKENIZER} of {hub_name} there"
        ) from error
    if found != num_rows:
        raise CheckpointError(
            f"{path}: has {found} tokens, but the embedding table of {checkpoint.name} has {num_rows} rows; "
            f"put the {TOKENIZER} of {hub_name} there"
        )
    return tokenizer


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, the added ones included, of the content of a ``tokenizer.json``."""
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    return dict(tokenizer["model"]["vocab"]) | added


def assemble(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    unused: Sequence[str],
    logit_scale: float,
    audio_options: Mapping[str, Any],
    text_options: Mapping[str, Any],
    embedding_dim: int,
    head: str,
) -> DualEncoder:
    """The model with its weights, in evaluation mode.

    Args:
        path: the checkpoint.
        tensors: under the names of the dual encoder.
        unused: names of the checkpoint's tensors that are left out.
        logit_scale: factor on cosines that the model was trained with.
        audio_options: of the hf audio tower.
        text_options: of the hf text tower.
        embedding_dim: width D of the joint space.
        head: kind of both projection heads.

    Raises:
        CheckpointError: if the tensors are not exactly those of the model, or the tokenizer cannot be used.
    """
    try:
        model = DualEncoder(
            "hf",
            "hf",
            embedding_dim=embedding_dim,
            audio_options=audio_options,
            text_options=text_options,
            audio_head=head,
            text_head=head,
        )
    except ClapkitError as error:
        raise CheckpointError(f"{path}: {error}") from error
    computed = {name: table for name, table in model.state_dict().items() if name.rpartition(".")[2] in COMPUTED_BUFFERS}
    load_strictly(model, computed | dict(tensors), origin=str(path))
    model.config["logit_scale"] = logit_scale
    if unused:
        kinds = sorted({re.sub(r"\d+", "*", name) for name in unused})
        note = f"{path.name}: {len(unused)} tensors are not needed to embed: {shorten(kinds)}"
        model.audio_tower.notes = [*getattr(model.audio_tower, "notes", ()), note]
    return model.eval()
