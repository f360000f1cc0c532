"""Weights that others trained: where they lie, and how they are loaded without a surprise.

Addresses are folders, files, or names on the Hugging Face Hub (``owner/name``), which are downloaded into its cache. Code that
comes with weights is never run; pickles are read with ``weights_only``; a tensor that a module needs and a file does not have
is an error, because the module would keep random numbers in its place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clapkit.errors import CheckpointError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*")
OLDER_WEIGHTS = "pytorch_model*.bin"
CONFIG = "config.json"
# Buffers that a module computes itself whether or not a file holds them: whether it does depends on the version that wrote it.
COMPUTED_BUFFERS = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
# What safetensors and torch raise for a damaged file: the unpickler reads whatever is there as instructions.
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    SafetensorError,
)


def find(address: str, *, files: Sequence[str] | None = None) -> Path:
    """The folder or file of an address; a name of the Hub is downloaded, unless the cache has it.

    Args:
        address: folder, file, or owner/name on the Hub.
        files: patterns of the files to download; default: configuration, tokenizer and weights, which are not taken as a
            pickle where they are there as safetensors.

    Raises:
        CheckpointError: if there is no such thing, here or on the Hub.
    """
    if address and Path(address).exists():
        return Path(address)
    if not HUB_NAME.fullmatch(address):
        raise CheckpointError(
            f"weights {address or repr(address)}: no such file or folder, and no name of the Hugging Face Hub; expected a path "
            "or owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with quiet_libraries():
            folder = Path(snapshot_download(address, allow_patterns=list(files or HUB_FILES)))
            if files is None and not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(address, allow_patterns=[*HUB_FILES, OLDER_WEIGHTS]))
            return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"weights {address}: no such folder here, and the Hub did not give it ({reason}); check the name and the "
            "connection, or download it and name the folder"
        ) from error


def name_of(folder: Path) -> str:
    """What to call a folder in a note: owner/name if it is of the Hub's cache, where folders have the names of commits."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); expected a JSON object; restore it, or name another model or train run"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}, expected a JSON object; restore it, or name another model or train run"
        )
    return content


def read_tensors(path: Path, *, stand_ins: Sequence[tuple[Callable[..., Any], str]] = ()) -> dict[str, Any]:
    """What a weight file holds: tensors of a ``.safetensors`` file, or the content of a pickle, which runs no code.

    Args:
        path: the file.
        stand_ins: what is called in place of a function that a pickle names, and that name; any other name is refused.

    Raises:
        CheckpointError: if the file is missing, damaged, or a pickle that holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Any] = safetensors.torch.load_file(path)
            return tensors
        with torch.serialization.safe_globals(list(stand_ins)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds Python objects besides tensors, which could run code and are not loaded; "
            "ask its author for safetensors"
        ) from error
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read as weights ({reason}); copy or download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a dictionary of tensors; name another file")
    return content


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Load tensors that must be exactly those of the module.

    Args:
        module: takes the weights.
        tensors: under the module's own names.
        origin: where they are from, for messages.

    Raises:
        CheckpointError: if one is missing, too many or misshapen; all kinds are counted, the first is named.
    """
    expected = module.state_dict()
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    misshapen = sorted(k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape)
    if missing or surplus or misshapen:
        found = [f"{len(missing)} tensors are missing (first {missing[0]})"] if missing else []
        found += [f"{len(surplus)} have no place (first {surplus[0]})"] if surplus else []
        if misshapen:
            name = misshapen[0]
            found.append(
                f"{len(misshapen)} have another shape (first {name}: {list(tensors[name].shape)}, expected "
                f"{list(expected[name].shape)})"
            )
        raise CheckpointError(f"{origin}: {', '.join(found)}; the weights are of another model, name the right one")
    module.load_state_dict(dict(tensors))


def load_transformer(model_class: Any, folder: Path, **settings: Any) -> tuple[nn.Module, list[str]]:
    """A model of the library transformers from a folder, in float32 and in evaluation mode.

    Args:
        model_class: class with ``from_pretrained``.
        folder: with ``config.json`` and weights.
        settings: more arguments of ``from_pretrained``.

    Returns:
        The model, and a note that lists what the folder holds and the model does not use; no note if there is nothing.

    Raises:
        CheckpointError: if files are missing or damaged, or the model needs a tensor that is not there.
    """
    from huggingface_hub.errors import StrictDataclassError

    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: has no {CONFIG}, so its architecture is not known; name a folder that has one")
    damage = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, pickle.UnpicklingError)
    try:
        with quiet_libraries():
            model, info = model_class.from_pretrained(
                folder,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                # So that the error below names them; left alone, the library prints a table instead.
                ignore_mismatched_sizes=True,
                **settings,
            )
    except (*damage, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # A configuration is refused as "Validation error for field 'x':" and the finding on the next line.
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise CheckpointError(
            f"{folder}: cannot be loaded as {model_class.__name__} ({reason}); "
            "name a folder with its config.json and whole weights"
        ) from error
    missing = sorted(name for name in info["missing_keys"] if name.rpartition(".")[2] not in COMPUTED_BUFFERS)
    wrong = sorted(f"{name}: {list(found)}, expected {list(wanted)}" for name, found, wanted in info["mismatched_keys"])
    if missing or wrong:
        found = f"{len(missing)} tensors are missing" if missing else f"{len(wrong)} tensors have another shape"
        raise CheckpointError(
            f"{folder}: {found} for {model_class.__name__}, first {(missing or wrong)[0]}; the weights are of another model, "
            "name the right one"
        )
    unused = sorted(info["unexpected_keys"])
    if not unused:
        return model.eval(), []
    tensors = "1 tensor is" if len(unused) == 1 else f"{len(unused)} tensors are"
    return model.eval(), [f"{name_of(folder)}: {tensors} not used by {model_class.__name__}: {shorten(unused)}"]


# By name, because transformers puts functions of its own in the place of those of nn.init while it makes a model.
DRAWING = ("normal_", "uniform_", "kaiming_uniform_")


class WithoutDrawing(TorchFunctionMode):
    """A context in which modules are made without random weights, for those that are loaded strictly right after.

    Drawing 150 million numbers takes three times as long as reading them. What they would have filled holds anything.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Leave a tensor as it is where random numbers would fill it."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def shorten(names: list[str], most: int = 6) -> str:
    """The first names of a sorted list, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers and the Hub from printing tables, warnings and progress bars; what matters is raised or noted."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    showed_progress = transformers_logging.is_progress_bar_enabled()
    if showed_progress:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        if showed_progress:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
