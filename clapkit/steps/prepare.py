"""``prepare``: a corpus in, a checked manifest out."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clapkit import registry
from clapkit.config import PrepareConfig
from clapkit.data import audit, file_table, splits
from clapkit.data.copies import CopyPolicy, copy_name
from clapkit.data.inspection import Inspection
from clapkit.data.language_tags import with_normal_tags
from clapkit.data.manifest import Manifest
from clapkit.data.processes import num_cores
from clapkit.errors import ClapkitError, ConfigError, ManifestError, RunDirError
from clapkit.files import atomic_path, file_fingerprint
from clapkit.index.where import Where
from clapkit.run_dir import RunDir
from clapkit.steps import prepare_choice as choice
from clapkit.steps.inputs import FILES
from clapkit.steps.inspection_journal import InspectionJournal
from clapkit.steps.prepare_exclude import ExclusionList, exclude, read_list, record_lists, warn_of_emptied
from clapkit.steps.prepare_export import check_export, export
from clapkit.steps.prepare_findings import Pair, between, drop_findings, near_duplicates, read_checks
from clapkit.steps.prepare_inspect import (
    COPIES_DIR,
    copy_policy,
    drop_copies,
    drop_unused,
    fill,
    inspect_clips,
    journal_of,
    use_copies,
)
from clapkit.steps.prepare_others import PreparedRun, open_prepared, report_overlap, subtract
from clapkit.steps.prepare_report import Verdict, build_report, result_of, warn, write_page, write_relevance
from clapkit.steps.prepare_source import audio_root, check_source, corpus_name, recognise
from clapkit.types import Clip, CorpusDescription, DescribesCorpus, Recipe, RecipeRequest, Rejection, Reporter


@dataclass(frozen=True, slots=True)
class _Choices:
    """What the user wants, read and checked before anything is done.

    Attributes:
        languages: of captions to keep; None keeps all.
        templates: for captions from labels; None where nothing was said.
        exclude: lists of clips that are left out.
        where: which clips to keep; None keeps all.
        drop: findings of the audit by which clips and captions are left out.
        copies: how decoded copies are made; None makes none.
        subtract: runs whose recordings are left out.
        check_overlap: runs whose recordings are reported.
    """

    languages: frozenset[str] | None
    templates: tuple[str, ...] | None
    exclude: tuple[ExclusionList, ...]
    where: Where | None
    drop: frozenset[str]
    copies: CopyPolicy | None
    subtract: tuple[PreparedRun, ...]
    check_overlap: tuple[PreparedRun, ...]


@dataclass
class _Items:
    """Clips on their way through the step, and what was left behind."""

    clips: list[Clip] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)

    def keep(self, items: Iterable[Clip | Rejection]) -> None:
        """Replace the clips by what a stage made of them."""
        self.clips = []
        for item in items:
            if isinstance(item, Clip):
                self.clips.append(item)
            else:
                self.rejections.append(item)


def run(config: PrepareConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Read a corpus, check it and write what can be used of it.

    Args:
        config: of the command.
        run_dir: created for this call.
        reporter: told about progress and what looks wrong.

    Returns:
        What ``result.json`` holds: counts, splits, findings and the fingerprint of the manifest.

    Raises:
        UnknownNameError: if there is no such recipe, option or check.
        ConfigError: if options contradict each other.
        ManifestError: if no clip is usable, any item is rejected under ``--strict``, or the data are too few to split.
        RunDirError: if another run that is to be compared does not exist, or a list of clips changed since the run was started.
    """
    chosen = _read_choices(config)
    record_lists(chosen.exclude, run_dir)
    name, source = recognise(config.recipe, config.source, runs_root=config.runs_root)
    recipe: Recipe = registry.build("recipe", name, registry.parse_assignments(config.options))
    check_source(name, recipe, source, config.audio_dir)
    root = audio_root(recipe, source, config, run_dir.path.absolute())
    journal = journal_of(run_dir)
    try:
        return _prepare(config, run_dir, reporter, chosen, name, source, recipe, root, journal)
    except RunDirError:
        raise  # such as a full disk: what was found stays for --resume
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RunDirError(f"{run_dir.path}: no space left on the disk; make room and go on with --resume") from error
    except ClapkitError:
        journal.discard()  # nothing that --resume could change
        raise
    finally:
        journal.close()


def _prepare(
    config: PrepareConfig,
    run_dir: RunDir,
    reporter: Reporter,
    chosen: _Choices,
    name: str,
    source: Path | None,
    recipe: Recipe,
    root: Path,
    journal: InspectionJournal,
) -> dict[str, Any]:
    request = RecipeRequest(
        source=source,
        audio_dir=config.audio_dir,
        output_dir=run_dir.path.absolute(),
        seed=config.seed,
        workers=config.workers or num_cores(),
        reporter=reporter,
    )
    items = _Items()
    items.keep(_relative(item, root) for item in _first(recipe.clips(request), config.limit))
    if not items.clips and not items.rejections:
        raise ManifestError(f"{source or name}: no clip found, expected at least one; name a folder or table with audio")
    items.clips = _in_exported_order(with_normal_tags(items.clips), getattr(recipe, "exported_rows", {}))
    listed = list(items.clips)
    _exclude(items, chosen, reporter, is_limited=config.limit is not None)
    _choose_captions(items, chosen, reporter)
    found = inspect_clips(
        items.clips,
        root,
        config=config,
        copies=chosen.copies,
        copies_dir=run_dir.path.absolute() / COPIES_DIR,
        journal=journal,
        reporter=reporter,
    )
    items.keep(fill(clip, found[clip.audio]) for clip in items.clips)
    if chosen.where is not None:
        items.keep(choice.keep_where(items.clips, chosen.where))
    for other in chosen.subtract:
        _subtract(items, found, other, reporter)
    matches = near_duplicates(items.clips, found, config, reporter)
    if chosen.drop:
        items.keep(drop_findings(items.clips, found, matches, chosen.drop))
    matches = between(items.clips, matches)
    _write_rejections(items, is_strict=config.strict, run_dir=run_dir, reporter=reporter)
    items.clips = _split(items.clips, found, matches, recipe, config, reporter)
    description = recipe.describe(items.clips) if isinstance(recipe, DescribesCorpus) else CorpusDescription()
    verdict = Verdict(
        name=corpus_name(name, recipe, source),
        recipe=name,
        check=config.check,
        clips=items.clips,
        listed=listed,
        rejections=items.rejections,
        found=found,
        findings=audit.find(items.clips, found, near_duplicates=matches),
        near_duplicates=matches,
        description=description,
        overlaps=[report_overlap(items.clips, found, other) for other in chosen.check_overlap],
    )
    manifest = _write_manifest(items.clips, found, chosen.copies, root, verdict.name, run_dir)
    report = build_report(verdict) | {"fingerprint": manifest.fingerprint}
    warn(report, reporter, is_limited=config.limit is not None)
    run_dir.write_json(run_dir.path / "report.json", report)
    write_page(run_dir, verdict, report, root)
    if hasattr(recipe, "root_name"):
        drop_unused(root, kept={clip.audio for clip in items.clips} if chosen.copies is None else set())
    write_relevance(run_dir, description)
    exported = export(manifest, config, run_dir, reporter)
    _add_inputs(run_dir, source, items.clips, found, chosen)
    journal.discard()
    return result_of(report, manifest) | ({"export": exported} if exported is not None else {})


def _read_choices(config: PrepareConfig) -> _Choices:
    for flag, value in (("--limit", config.limit), ("--workers", config.workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: expected at least 1")
    if config.split is not None and (not config.split.strip() or set(config.split) & set(":,")):
        raise ConfigError(f"--split {config.split!r}: expected a name without : and , which separate splits in RUN:SPLIT")
    check_export(config)
    return _Choices(
        languages=choice.read_languages(config.languages),
        templates=choice.read_templates(config.template),
        exclude=tuple(read_list(address) for address in config.exclude),
        where=choice.read_where(config.where),
        drop=read_checks(config.drop, config),
        copies=copy_policy(config),
        subtract=tuple(open_prepared(address, runs_root=config.runs_root) for address in config.subtract),
        check_overlap=tuple(open_prepared(address, runs_root=config.runs_root) for address in config.check_overlap),
    )


def _first(items: Iterable[Clip | Rejection], limit: int | None) -> Iterator[Clip | Rejection]:
    """Items up to the clip number ``limit``."""
    num_clips = 0
    for item in items:
        yield item
        num_clips += isinstance(item, Clip)
        if num_clips == limit:
            return


def _relative(item: Clip | Rejection, root: Path) -> Clip | Rejection:
    if isinstance(item, Clip) and item.audio.startswith("/") and Path(item.audio).is_relative_to(root):
        return replace(item, audio=Path(item.audio).relative_to(root).as_posix())
    return item


def _in_exported_order(clips: list[Clip], rows: Mapping[str, int]) -> list[Clip]:
    """Clips of an export in the order of the manifest that was exported; others as they come."""
    is_export = bool(clips) and all(clip.id in rows for clip in clips)
    return sorted(clips, key=lambda clip: rows[clip.id]) if is_export else clips


def _exclude(items: _Items, chosen: _Choices, reporter: Reporter, *, is_limited: bool) -> None:
    """Leave out the clips that are listed, before anything is decoded of them."""
    before = items.clips
    if not before:
        return
    known = dict.fromkeys([clip.id for clip in before] + [rejection.item for rejection in items.rejections])
    for excluded in chosen.exclude:
        items.keep(exclude(items.clips, excluded, known=known, reporter=reporter, is_limited=is_limited))
    if chosen.exclude and items.clips:
        warn_of_emptied(before, items.clips, reporter)


def _choose_captions(items: _Items, chosen: _Choices, reporter: Reporter) -> None:
    """Keep the languages that are wanted, and make captions of labels."""
    if chosen.languages is not None:
        items.keep(choice.keep_languages(items.clips, chosen.languages))
    templates = chosen.templates
    if templates is None:
        has_labels_only = any(clip.labels for clip in items.clips) and not any(clip.captions for clip in items.clips)
        templates = (choice.DEFAULT_TEMPLATE,) if has_labels_only else ()
        if templates:
            reporter.say(f"no captions, only labels: captions are made with --template {choice.DEFAULT_TEMPLATE!r}")
    items.clips = choice.caption_by_labels(items.clips, templates)


def _subtract(items: _Items, found: Mapping[str, Inspection], other: PreparedRun, reporter: Reporter) -> None:
    num_before = len(items.clips)
    items.keep(subtract(items.clips, found, other))
    reporter.say(f"--subtract {other.address}: {num_before - len(items.clips)} of {num_before} clips left out")


def _write_rejections(items: _Items, *, is_strict: bool, run_dir: RunDir, reporter: Reporter) -> None:
    rejections = items.rejections
    records = [dataclasses.asdict(rejection) for rejection in rejections]
    run_dir.write_lines(run_dir.rejected_path, [{k: v for k, v in record.items() if v is not None} for record in records])
    for kind, verb in (("bad", "rejected"), ("missing", "without audio"), ("excluded", "left out as asked")):
        of_kind = [rejection for rejection in rejections if rejection.kind == kind]
        if not of_kind:
            continue
        total = len(rejections) + len(items.clips)
        first = f"{of_kind[0].item}: {of_kind[0].reason}"
        summary = f"{len(of_kind)} of {total} items {verb} (all in {run_dir.rejected_path}), first: {first}"
        if not items.clips:
            raise ManifestError(f"no usable clip: {summary}")
        if is_strict and kind != "excluded":
            raise ManifestError(f"--strict: {summary}")
        if kind == "excluded":
            reporter.say(summary)
        else:
            reporter.warn(summary)


def _split(
    clips: list[Clip],
    found: Mapping[str, Inspection],
    matches: Sequence[Pair] | None,
    recipe: Recipe,
    config: PrepareConfig,
    reporter: Reporter,
) -> list[Clip]:
    """Give every clip a split: the user's, the corpus's own, or a seeded draw."""
    if config.split is not None:
        return [clip.in_split(config.split) for clip in clips]
    without = [clip for clip in clips if clip.split is None]
    if not without:
        return clips
    if len(without) < len(clips):
        raise ManifestError(
            f"{len(without)} of {len(clips)} clips name no split (first: {without[0].id}), expected all or none; "
            "fill them in, or put everything into one with --split"
        )
    shares = recipe.shares if isinstance(recipe, splits.HasShares) else splits.Shares()
    # Copies of one sound count as one source, so that they do not leak from train into test.
    sources = [clip.source or found[clip.audio].content or clip.id for clip in clips]
    pairs = [*_same_bytes(clips, found), *(pair[:2] for pair in matches or ())]
    sources = splits.join_sources([clip.id for clip in clips], sources, pairs)
    assigned = splits.assign(clips, sources, shares=shares, seed=config.seed)
    if {clip.split for clip in assigned} == {"train"} and shares.val + shares.test > 0:
        reporter.warn(
            f"sources found: {len(set(sources))}, too few to split: all clips are in train; "
            "add data, or set val_share and test_share, before you train or evaluate on them"
        )
    return assigned


def _same_bytes(clips: Sequence[Clip], found: Mapping[str, Inspection]) -> Iterator[tuple[str, str]]:
    """Ids of clips that are copies of an earlier one, also where their sources are called differently."""
    first: dict[tuple[str, float | None, float | None], str] = {}
    for clip in clips:
        content = found[clip.audio].content
        if content is not None:
            earlier = first.setdefault((content, clip.start_s, clip.end_s), clip.id)
            if earlier != clip.id:
                yield earlier, clip.id


def _write_manifest(
    clips: Sequence[Clip],
    found: Mapping[str, Inspection],
    copies: CopyPolicy | None,
    root: Path,
    name: str,
    run_dir: RunDir,
) -> Manifest:
    """Write ``files.parquet`` and ``manifest.jsonl``; the clips point at the copies where copies were made."""
    used = {clip.audio: found[clip.audio] for clip in clips}
    if copies is not None:
        root = run_dir.path.absolute() / COPIES_DIR
        clips = use_copies(clips, found, copies)
        drop_copies([audio for audio in found if audio not in used], root, copies)
        used = {copy_name(audio, copies.format): inspection for audio, inspection in used.items()}
    sizes = {} if copies is None else {audio: (root / audio).stat().st_size for audio in used}
    with atomic_path(run_dir.path / FILES) as temporary:
        file_table.write(temporary, used.items(), sizes=sizes)
    with atomic_path(run_dir.manifest_path) as temporary:
        manifest = Manifest.write(temporary, clips, root=root, name=name)
    return manifest


def _add_inputs(
    run_dir: RunDir, source: Path | None, clips: Sequence[Clip], found: Mapping[str, Inspection], chosen: _Choices
) -> None:
    if source is not None:
        run_dir.add_input(source, _source_fingerprint(source, clips, found))
    for other in (*chosen.subtract, *chosen.check_overlap):
        run_dir.add_input(other.path, other.fingerprint)


def _source_fingerprint(source: Path, clips: Sequence[Clip], found: Mapping[str, Inspection]) -> str:
    """Hash of a file, or of the content of all audio of a folder (paths and durations where it was not decoded)."""
    if source.is_file():
        return file_fingerprint(source)
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.audio}\t{found[clip.audio].content or clip.duration_s}\n".encode())
    return digest.hexdigest()
