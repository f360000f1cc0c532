"""Text tables written while they are made: captions to vectors to files, in memory that does not grow with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from clapkit.data.manifest import Manifest
from clapkit.index.writer import TableWriter, metadata_rows
from clapkit.steps.clip_vectors import FloatArray
from clapkit.steps.embed_earlier import Changes, EarlierCaptions, caption_content, joined
from clapkit.steps.embed_write import Settings
from clapkit.steps.embedding import embed_texts
from clapkit.steps.encoding import Encoder
from clapkit.steps.vector_cache import VectorCache
from clapkit.types import Caption, Clip, Reporter, SilentReporter

# Captions that are embedded and kept together: a run that goes on forms the same batches, and so gets the same bits. One
# transaction of the cache takes as many.
_BLOCK_CAPTIONS = 256
_NO_SPAN = [(0.0, 0.0)]
_Block = list[tuple[Clip, Caption]]


def write_captions(
    model: Encoder,
    manifest: Manifest,
    *,
    writer: TableWriter,
    progress: VectorCache,
    settings: Settings,
    reporter: Reporter,
    earlier: EarlierCaptions | None = None,
    changes: Changes | None = None,
) -> None:
    """Embed every caption into a table; equal captions get one vector.

    Args:
        model: in evaluation mode, on the device of ``settings``.
        manifest: clips with their captions.
        writer: of the table.
        progress: keeps vectors of captions.
        settings: how to embed.
        reporter: progress; is told of captions that are too long for the model.
        earlier: the table that is brought up to date.
        changes: is told of every clip; None where its audio counts.

    Raises:
        NumericalError: if an embedding is not finite.
    """
    cut_before = _captions_cut(model)[0]
    with reporter.track("embed text", sum(len(clip.captions) for clip in manifest), "captions") as tracker:
        for block in _blocks(manifest):
            contents = [caption_content(caption) for _, caption in block]
            vectors = _known(contents, progress=progress, earlier=earlier)
            unknown = {
                content: caption for content, (_, caption) in zip(contents, block, strict=True) if content not in vectors
            }
            if unknown:
                vectors |= _embed(model, unknown, settings=settings, progress=progress)
            writer.append(np.stack([vectors[content] for content in contents]), _rows(block, contents, manifest))
            tracker.advance(len(block))
    if changes is not None:
        _note(changes, manifest, earlier)
    num_cut, max_tokens = _captions_cut(model)
    if num_cut > cut_before:
        reporter.warn(
            f"{num_cut - cut_before} captions are longer than the {max_tokens} tokens that the model reads; their ends are "
            "not embedded"
        )


def _blocks(manifest: Manifest) -> Iterator[_Block]:
    block: _Block = []
    for clip in manifest:
        for caption in clip.captions:
            block.append((clip, caption))
            if len(block) == _BLOCK_CAPTIONS:
                yield block
                block = []
    if block:
        yield block


def _known(contents: list[str], *, progress: VectorCache, earlier: EarlierCaptions | None) -> dict[str, FloatArray]:
    """Vectors [D] of captions that need not be embedded."""
    found: dict[str, FloatArray] = {}
    for content in dict.fromkeys(contents):
        vector = earlier.find(content) if earlier is not None else None
        if vector is None:
            kept = progress.get(content, None, None)
            vector = kept[0][0] if kept is not None else None
        if vector is not None:
            found[content] = vector
    return found


def _embed(
    model: Encoder, captions: Mapping[str, Caption], *, settings: Settings, progress: VectorCache
) -> dict[str, FloatArray]:
    """Vectors [D] of captions, which are kept in one transaction."""
    vectors = embed_texts(
        model,
        [caption.text for caption in captions.values()],
        languages=[caption.lang for caption in captions.values()],
        reporter=SilentReporter(),
        batch_size=settings.batch_size,
        precision=settings.precision,
        device=settings.device,
    )
    found = dict(zip(captions, vectors, strict=True))
    progress.flush()
    for content, vector in found.items():
        progress.put(content, None, None, vector[None], _NO_SPAN, 1)
    progress.flush()
    return found


def _rows(block: _Block, contents: list[str], manifest: Manifest) -> pa.Table:
    return metadata_rows(
        ids=[clip.id for clip, _ in block],
        paths=[os.fspath(manifest.audio_path(clip)) for clip, _ in block],
        spans=[(clip.start_s, clip.end_s) for clip, _ in block],
        captions=[[caption.text] for _, caption in block],
        labels=[clip.labels for clip, _ in block],
        splits=[clip.split for clip, _ in block],
        contents=contents,
    )


def _note(changes: Changes, manifest: Manifest, earlier: EarlierCaptions | None) -> None:
    for clip in manifest:
        contents = [caption_content(caption) for caption in clip.captions]
        if contents:
            is_reused = earlier is not None and all(earlier.find(content) is not None for content in contents)
            changes.note(clip.id, joined(contents), is_reused=is_reused)


def _captions_cut(model: Encoder) -> tuple[int, int]:
    """How many sentences a model has cut so far, and at how many tokens; zeros where it does not count."""
    return getattr(model, "captions_cut", None) or (0, 0)
