"""``prepare``: a corpus in, a checked manifest out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clapkit import registry
from clapkit.config import PrepareConfig
from clapkit.data import splits
from clapkit.data.audit import Inspection, inspect_files, num_cores, summarise
from clapkit.data.manifest import Manifest
from clapkit.data.tables import TABLE_SUFFIXES
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.files import atomic_path, file_fingerprint
from clapkit.run_dir import RunDir
from clapkit.types import Clip, Recipe, RecipeRequest, Rejection, Reporter

DEFAULT_RECIPE = "synth"


def run(config: PrepareConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Read a corpus, check its audio and write ``manifest.jsonl``, ``rejected.jsonl`` and ``report.json``.

    Args:
        config: of the command.
        run_dir: created for this call.
        reporter: told about progress and what looks wrong.

    Returns:
        What ``result.json`` holds: counts, splits and the fingerprint of the manifest.

    Raises:
        UnknownNameError: if there is no such recipe or option.
        ConfigError: if options contradict each other.
        ManifestError: if no clip is usable, any item is rejected under ``--strict``, or the data are too few to split.
        AudioError: if a decoding process dies.
    """
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"--limit {config.limit}: expected at least 1")
    if config.workers is not None and config.workers < 1:
        raise ConfigError(f"--workers {config.workers}: expected at least 1")
    name, source = recognise(config.recipe, config.source)
    recipe: Recipe = registry.build("recipe", name, registry.parse_assignments(config.options))
    _check_source(name, recipe, source, config.audio_dir)
    root = run_dir.path.absolute() if recipe.makes_audio else _root(source, config.audio_dir)
    request = RecipeRequest(
        source=source,
        audio_dir=config.audio_dir,
        output_dir=run_dir.path.absolute(),
        seed=config.seed,
        workers=config.workers or num_cores(),
        reporter=reporter,
    )
    items = [_relative(item, root) for item in _first(recipe.clips(request), config.limit)]
    found = _inspect(items, root, config, reporter)
    items = [_fill(item, found[item.audio]) if isinstance(item, Clip) else item for item in items]
    clips = [item for item in items if isinstance(item, Clip)]
    rejections = [item for item in items if isinstance(item, Rejection)]
    if not items:
        raise ManifestError(f"{source or name}: no clip found, expected at least one; name a folder or table with audio")
    _write_rejections(rejections, num_clips=len(clips), is_strict=config.strict, run_dir=run_dir, reporter=reporter)
    clips = _split(clips, found, recipe, config, reporter)
    report = {"name": _corpus_name(name, source), "recipe": name, "check": config.check}
    report |= summarise(clips, found) | {"num_rejected": len(rejections)}
    _warn(report, reporter)
    with atomic_path(run_dir.manifest_path) as temporary:
        manifest = Manifest.write(temporary, clips, root=root, name=report["name"])
    run_dir.write_json(run_dir.path / "report.json", report)
    if source is not None:
        run_dir.add_input(source, _source_fingerprint(source, clips, found))
    return _result(report, manifest)


def recognise(recipe: str | None, source: str | None) -> tuple[str, Path | None]:
    """Which recipe is meant: its name, or a folder or table given in its place.

    Args:
        recipe: first argument of the command.
        source: second argument of the command.

    Returns:
        Name of a recipe, and what it reads.

    Raises:
        UnknownNameError: if it is neither a recipe nor looks like a path.
        ConfigError: if two sources are given.
        ManifestError: if it is a path at which nothing, or nothing usable, lies.
    """
    if recipe is None:
        return DEFAULT_RECIPE, None
    if recipe in registry.names("recipe"):
        return recipe, None if source is None else Path(source).expanduser()
    path = Path(recipe).expanduser()
    if source is not None and path.exists():
        raise ConfigError(f"{recipe} and {source}: two sources found, expected RECIPE SOURCE or one folder or table")
    if path.is_dir():
        return "folder", path
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            expected = ", ".join(TABLE_SUFFIXES)
            raise ManifestError(f"{recipe}: is no table, expected a folder or a {expected} file; name another")
        return "table", path
    if "/" in recipe or recipe.startswith((".", "~")) or path.suffix.lower() in TABLE_SUFFIXES:
        raise ManifestError(f"{recipe}: no such file or folder; expected a folder, a table or a recipe's name")
    raise UnknownNameError(
        "recipe", recipe, registry.names("recipe"), hint="or name a folder or a table (.csv, .tsv, .jsonl, .json, .parquet)"
    )


def _check_source(name: str, recipe: Recipe, source: Path | None, audio_dir: Path | None) -> None:
    if source is None and recipe.needs_source:
        raise ConfigError(f"recipe {name}: no source given, expected one; run `clapkit prepare {name} SOURCE`")
    if source is not None and not recipe.needs_source:
        raise ConfigError(f"recipe {name}: reads nothing, but source {source} is given; leave it out")
    for path in (source, audio_dir):
        if path is not None and not path.exists():
            raise ManifestError(f"{path}: no such file or folder; correct the path")


def _root(source: Path | None, audio_dir: Path | None) -> Path:
    """Where relative audio paths start from, for recipes that read files of the user's."""
    assert source is not None, "a recipe that makes no audio needs a source"
    return (audio_dir or (source if source.is_dir() else source.parent)).absolute()


def _corpus_name(recipe: str, source: Path | None) -> str:
    if source is None or recipe not in ("folder", "table"):
        return recipe
    return source.stem if source.is_file() else source.resolve().name


def _first(items: Iterable[Clip | Rejection], limit: int | None) -> Iterable[Clip | Rejection]:
    """Items up to the clip number ``limit``."""
    num_clips = 0
    for item in items:
        yield item
        num_clips += isinstance(item, Clip)
        if num_clips == limit:
            return


def _relative(item: Clip | Rejection, root: Path) -> Clip | Rejection:
    if isinstance(item, Clip) and Path(item.audio).is_absolute() and Path(item.audio).is_relative_to(root):
        return replace(item, audio=Path(item.audio).relative_to(root).as_posix())
    return item


def _inspect(items: Sequence[Clip | Rejection], root: Path, config: PrepareConfig, reporter: Reporter) -> dict[str, Inspection]:
    """Inspect every file once, also where several clips are spans of it."""
    audio = list(dict.fromkeys(item.audio for item in items if isinstance(item, Clip)))
    decode = config.check == "decode"
    found = {}
    with reporter.track("checking audio", len(audio), "files") as tracker:
        inspections = inspect_files([root / path for path in audio], decode=decode, workers=config.workers)
        for path, inspection in zip(audio, inspections, strict=True):
            found[path] = inspection
            tracker.advance()
    return found


def _fill(clip: Clip, inspection: Inspection) -> Clip | Rejection:
    """Fill in what the file says, or refuse the clip."""
    if inspection.info is None:
        return Rejection(clip.id, inspection.problem or "cannot be used")
    info = inspection.info
    start_s = clip.start_s or 0.0
    end_s = info.duration_s if clip.end_s is None else clip.end_s
    # Counted in samples, because spans are cut at the nearest one.
    if not round(start_s * info.sample_rate) < round(end_s * info.sample_rate) <= info.num_frames:
        found = f"span from {start_s:g} s to {end_s:g} s"
        return Rejection(clip.id, f"{found}, expected it inside the {info.duration_s:g} s of {clip.audio}; correct it")
    return replace(clip, duration_s=end_s - start_s, sample_rate=info.sample_rate, num_channels=info.num_channels)


def _write_rejections(
    rejections: Sequence[Rejection], *, num_clips: int, is_strict: bool, run_dir: RunDir, reporter: Reporter
) -> None:
    run_dir.write_lines(run_dir.rejected_path, [{"item": r.item, "reason": r.reason} for r in rejections])
    if not rejections:
        return
    first = f"{rejections[0].item}: {rejections[0].reason}"
    summary = (
        f"{len(rejections)} of {len(rejections) + num_clips} items rejected (all in {run_dir.rejected_path}), first: {first}"
    )
    if not num_clips:
        raise ManifestError(f"no usable clip: {summary}")
    if is_strict:
        raise ManifestError(f"--strict: {summary}")
    reporter.warn(summary)


def _split(
    clips: list[Clip], found: dict[str, Inspection], recipe: Recipe, config: PrepareConfig, reporter: Reporter
) -> list[Clip]:
    """Give every clip a split: the user's, the corpus's own, or a seeded draw."""
    if config.split is not None:
        return [replace(clip, split=config.split) for clip in clips]
    without = [clip for clip in clips if clip.split is None]
    if not without:
        return clips
    if len(without) < len(clips):
        raise ManifestError(
            f"{len(without)} of {len(clips)} clips name no split (first: {without[0].id}), expected all or none; "
            "fill them in, or put everything into one with --split"
        )
    shares = recipe.shares if isinstance(recipe, splits.HasShares) else splits.Shares()
    # Copies of one file count as one source, so that they do not leak from train into test.
    sources = [clip.source or found[clip.audio].content or clip.id for clip in clips]
    assigned = splits.assign(clips, sources, shares=shares, seed=config.seed)
    if {clip.split for clip in assigned} == {"train"} and shares.val + shares.test > 0:
        reporter.warn(
            f"sources found: {len(set(sources))}, too few to split: all clips are in train; "
            "add data, or set val_share and test_share, before you train or evaluate on them"
        )
    return assigned


def _warn(report: dict[str, Any], reporter: Reporter) -> None:
    """Say what is allowed but may be wrong."""
    for key in ("silent", "clipped"):
        if report[key] and report[key]["num_clips"]:
            found = report[key]
            reporter.warn(f"{key} clips: {found['num_clips']}, first: {found['ids'][0]}; see report.json")
    duplicates = report["duplicates"]
    if duplicates and duplicates["num_groups"]:
        across = duplicates["num_groups_across_splits"]
        reporter.warn(
            f"groups of clips that are copies of one file: {duplicates['num_groups']}, of these across splits: {across}, "
            f"first: {', '.join(duplicates['groups'][0][:3])}; see report.json"
        )


def _source_fingerprint(source: Path, clips: Sequence[Clip], found: dict[str, Inspection]) -> str:
    """Hash of a table, or of the content of all audio of a folder (paths and durations where it was not decoded)."""
    if source.is_file():
        return file_fingerprint(source)
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.audio}\t{found[clip.audio].content or clip.duration_s}\n".encode())
    return digest.hexdigest()


def _result(report: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    result: dict[str, Any] = {"manifest": "manifest.jsonl", "fingerprint": manifest.fingerprint, "report": "report.json"}
    result |= {key: report[key] for key in ("name", "recipe", "check", "num_clips", "num_captions", "hours")}
    result["splits"] = {name: size["num_clips"] for name, size in report["splits"].items()}
    result["num_rejected"] = report["num_rejected"]
    for key in ("silent", "clipped"):
        result[f"num_{key}"] = None if report[key] is None else report[key]["num_clips"]
    result["num_duplicate_groups"] = None if report["duplicates"] is None else report["duplicates"]["num_groups"]
    return result
