"""clapkit: prepare audio-caption data, train contrastive language-audio models, embed, retrieve and evaluate.

The command line is the main door (``clapkit --help``). The names below are the parts that scripts import; they are
loaded on first use, so that ``import clapkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clapkit.data.manifest import Manifest
    from clapkit.encoders.dual import DualEncoder
    from clapkit.errors import ClapkitError
    from clapkit.index.table import EmbeddingTable
    from clapkit.library import Model, load
    from clapkit.metrics.retrieval import evaluate_retrieval
    from clapkit.metrics.zero_shot import evaluate_zero_shot
    from clapkit.registry import build, names
    from clapkit.run_dir import RunDir
    from clapkit.types import AudioSpec, Batch, Caption, Clip, Hit, LossOutput

__version__ = "0.1.0"

_HOMES = {
    "AudioSpec": "clapkit.types",
    "Batch": "clapkit.types",
    "Caption": "clapkit.types",
    "ClapkitError": "clapkit.errors",
    "Clip": "clapkit.types",
    "DualEncoder": "clapkit.encoders.dual",
    "EmbeddingTable": "clapkit.index.table",
    "Hit": "clapkit.types",
    "LossOutput": "clapkit.types",
    "Manifest": "clapkit.data.manifest",
    "Model": "clapkit.library",
    "RunDir": "clapkit.run_dir",
    "build": "clapkit.registry",
    "evaluate_retrieval": "clapkit.metrics.retrieval",
    "evaluate_zero_shot": "clapkit.metrics.zero_shot",
    "load": "clapkit.library",
    "names": "clapkit.registry",
}

__all__ = [
    "AudioSpec",
    "Batch",
    "Caption",
    "ClapkitError",
    "Clip",
    "DualEncoder",
    "EmbeddingTable",
    "Hit",
    "LossOutput",
    "Manifest",
    "Model",
    "RunDir",
    "build",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "load",
    "names",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'clapkit' has no attribute {name!r}")
