"""Engines that are really opened: LanceDB on a folder and Milvus Lite on a file. Their tests skip where an extra is missing."""

import importlib.util

import numpy as np
import pytest

from clapkit.index import engines
from clapkit.index.layout import TableInfo
from clapkit.index.table import EmbeddingTable

EXTRAS = {"lance": ("lancedb",), "milvus": ("pymilvus", "milvus_lite")}


def expect_extra(name):
    missing = [module for module in EXTRAS[name] if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'clapkit[{name}]' to run the tests of this engine")


@pytest.fixture
def table():
    """Makes a table of random directions; row i is called c<i>."""

    def make(count, *, width=16, dtype="float16", seed=0, modality="audio"):
        vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = range(count)
        return EmbeddingTable.build(
            modality,
            vectors,
            ids=[f"c{i}" for i in rows],
            paths=[f"/x/{seed}/{i}.wav" for i in rows],
            spans=[(float(i), i + 1.5) if i % 3 else (None, None) for i in rows],
            captions=[[f"caption {i}", "second"] if i % 2 else [] for i in rows],
            labels=[["dog", "rain"] if i % 5 == 0 else [] for i in rows],
            splits=["test" if i % 4 == 0 else None for i in rows],
            dtype=dtype,
        )

    return make


@pytest.fixture
def described():
    """What a folder says of a table."""

    def make(table, *, table_id="t1", fingerprint="abcdef0123456789"):
        return TableInfo(
            width=table.width,
            dtype=str(table.vectors.dtype),
            counts={table.modality: len(table)},
            model_path="/models/m",
            model_fingerprint=fingerprint,
            audio_policy={"window_s": None, "pool": "mean"},
            data={"name": "things"},
            id=table_id,
        )

    return make


@pytest.fixture
def opened(tmp_path):
    """Opens engines and closes them after the test."""
    made = []

    def open_engine(kind, *, modality="audio"):
        expect_extra(kind)
        address = f"lance:{tmp_path / 'engine'}" if kind == "lance" else f"milvus:{tmp_path / 'engine.db'}"
        made.append(engines.parse(address, modality=modality))
        return made[-1]

    yield open_engine
    for engine in made:
        engine.close()
