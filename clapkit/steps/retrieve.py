"""``clapkit retrieve``: the items of an embedding table that are nearest to a text or a sound.

Torch is loaded only when a query has to be embedded; a text that was asked before comes from a cache.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit import registry
from clapkit.config import RetrieveConfig
from clapkit.errors import ConfigError
from clapkit.index.table import EmbeddingTable, TableInfo, load_table, read_info
from clapkit.index.where import Where
from clapkit.run_dir import RunDir
from clapkit.steps import inputs, query_cache
from clapkit.types import Clip, Hit, Reporter

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


def run(config: RetrieveConfig, run_dir: RunDir | None, reporter: Reporter) -> dict[str, Any]:
    """Search a table.

    Args:
        config: of the command.
        run_dir: where inputs are recorded; None if the query leaves nothing behind.
        reporter: messages.

    Returns:
        ``model``, ``embeddings``, ``num_items`` (that were searched) and ``results``: for each query its hits, best
        first.

    Raises:
        ClapkitError: if there is no query, or the table or its model cannot be used.
    """
    texts = _texts(config)
    if config.k < 1:
        raise ConfigError(f"-k {config.k}: expected at least 1")
    if config.lang is not None and not texts:
        raise ConfigError(f"--lang {config.lang}: belongs to queries of words, of which there are none; leave it out")
    folder = inputs.resolve_embeddings(config.embeddings, runs_root=config.runs_root)
    reporter.say(f"searching {folder}")
    info = read_info(folder)
    table = load_table(folder, config.target, info=info)
    model_path = Path(info.model_path)
    inputs.check_table_model(folder, model_path=model_path, fingerprint=info.model_fingerprint)
    if run_dir is not None:
        run_dir.add_input(folder / inputs.TABLE, info.model_fingerprint)
    rows = _wanted_rows(table, config.where)
    vectors = [_embed_texts(texts, info, config=config, reporter=reporter, run_dir=run_dir)] if texts else []
    if config.audio:
        vectors.append(_embed_audio(config.audio, info, config=config, reporter=reporter, run_dir=run_dir))
    index = registry.build("index", config.index, registry.parse_assignments(config.options))
    index.add(table.vectors)
    scores, found = index.search(np.concatenate(vectors), config.k, rows=rows)
    queries = [*texts, *config.audio]
    return {
        "model": os.fspath(model_path),
        "embeddings": os.fspath(folder),
        "num_items": len(table) if rows is None else len(rows),
        "results": _results(queries, scores, found, table=table, min_score=config.min_score),
    }


def _texts(config: RetrieveConfig) -> list[str]:
    """All text queries: of the command line, then of the file."""
    texts = [text.strip() for text in config.query]
    if not all(texts):
        raise ConfigError('query: is empty, expected words, for example `clapkit retrieve "dog barking"`')
    if config.queries is not None:
        texts += _query_file(config.queries)
    if not texts and not config.audio:
        raise ConfigError('no query: give words, --audio FILE or --queries FILE, for example `clapkit retrieve "dog barking"`')
    return texts


def _query_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"--queries {path}: cannot be read ({error.strerror}); name a text file, one query per line"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--queries {path}: cannot be read as UTF-8 (byte {error.start}), expected text with one query per line; convert it"
        ) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ConfigError(f"--queries {path}: holds no query; expected one per line")
    return texts


def _wanted_rows(table: EmbeddingTable, expression: str | None) -> IntArray | None:
    """Rows that satisfy the filter, ascending; None for all."""
    if expression is None:
        return None
    where = Where(expression)
    rows: IntArray = np.flatnonzero(where.mask(table.columns(where.columns)))
    return rows


def _embed_texts(
    texts: Sequence[str], info: TableInfo, *, config: RetrieveConfig, reporter: Reporter, run_dir: RunDir | None
) -> FloatArray:
    """Embed text queries [Q, D], as many as possible from the cache."""
    cache = query_cache.cache_dir(os.environ)
    key = info.model_fingerprint
    language = config.lang or "en"
    known = {text: query_cache.lookup(cache, text, fingerprint=key, width=info.width, language=language) for text in texts}
    missing = [text for text, vector in known.items() if vector is None]
    if missing:
        from clapkit.steps.embedding import embed_texts

        model, device = _load(info, config, run_dir)
        if config.lang is not None:
            inputs.expect_languages(model, config.lang, name=info.model_path)
        fresh = embed_texts(model, missing, languages=[language] * len(missing), reporter=reporter, device=device)
        for text, vector in zip(missing, fresh, strict=True):
            query_cache.store(cache, text, vector, fingerprint=key, language=language)
            known[text] = vector
    return np.stack([vector for vector in (known[text] for text in texts) if vector is not None])


def _embed_audio(
    files: Sequence[str], info: TableInfo, *, config: RetrieveConfig, reporter: Reporter, run_dir: RunDir | None
) -> FloatArray:
    """Embed query sounds [Q, D] as the table was made, with one vector for each file."""
    from clapkit.data.audio import check
    from clapkit.data.manifest import Manifest
    from clapkit.errors import AudioError
    from clapkit.steps.embedding import embed_clips

    for file in files:
        try:
            check(Path(file))
        except AudioError as error:
            raise AudioError(f"--audio {error}") from error
    clips = tuple(Clip(id=file, audio=os.path.abspath(file)) for file in files)
    model, device = _load(info, config, run_dir)
    embedded = embed_clips(
        model,
        Manifest(clips, root=Path(), name="query", fingerprint=""),
        reporter=reporter,
        window_s=info.audio_policy.get("window_s"),
        hop_s=info.audio_policy.get("hop_s"),
        device=device,
    )
    if embedded.rejected:
        raise AudioError(f"--audio {embedded.rejected[0].item}: {embedded.rejected[0].reason}")
    return embedded.vectors


def _load(info: TableInfo, config: RetrieveConfig, run_dir: RunDir | None) -> tuple[Any, str]:
    device = inputs.choose_device(config.device)
    if run_dir is not None:
        run_dir.set_device(device)
    return inputs.load_model(Path(info.model_path), device=device), device


def _results(
    queries: Sequence[str], scores: FloatArray, found: IntArray, *, table: EmbeddingTable, min_score: float | None
) -> list[dict[str, Any]]:
    distinct, place = np.unique(found, return_inverse=True)
    metadata = table.rows(distinct)  # hits only, each read once
    places = place.reshape(found.shape)
    results = []
    for number, query in enumerate(queries):
        hits = [
            _hit(rank, float(score), metadata[row])
            for rank, (score, row) in enumerate(zip(scores[number], places[number], strict=True), start=1)
            if min_score is None or score >= min_score
        ]
        results.append({"query": query, "hits": [_as_json(hit) for hit in hits]})
    return results


def _as_json(hit: Hit) -> dict[str, Any]:
    return {**dataclasses.asdict(hit), "captions": list(hit.captions), "labels": list(hit.labels)}


def _hit(rank: int, score: float, row: dict[str, Any]) -> Hit:
    return Hit(
        rank=rank,
        score=score,
        id=row["id"],
        path=row["path"],
        start_s=row["start_s"],
        end_s=row["end_s"],
        captions=tuple(row["captions"] or ()),
        labels=tuple(row["labels"] or ()),
    )
