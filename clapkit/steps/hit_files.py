"""What ``clapkit retrieve`` leaves behind on request: copies of the sounds, a playlist, a table, an opened file."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clapkit.config import RetrieveConfig
from clapkit.errors import AudioError, ConfigError, RunDirError
from clapkit.files import atomic_path
from clapkit.types import Reporter

Answers = Sequence[Mapping[str, Any]]

_COLUMNS = ("query", "rank", "score", "z_score", "modality", "id", "path", "start_s", "end_s", "caption", "labels")


def write_hits(answers: Answers, config: RetrieveConfig, *, reporter: Reporter) -> dict[str, Any]:
    """Write what the call asks for; gives what was written, by option.

    Raises:
        RunDirError: if a file or folder cannot be written.
        ConfigError: if nothing can be opened.
    """
    written: dict[str, Any] = {}
    if config.csv is not None:
        _write_csv(config.csv, answers)
        written["csv"] = os.fspath(config.csv)
    if config.playlist is not None:
        _write_playlist(config.playlist, answers)
        written["playlist"] = os.fspath(config.playlist)
    if config.copy_to is not None:
        copied, missing = _copy(config.copy_to, answers)
        written["copied"], written["not_copied"] = copied, missing
        reporter.say(f"{len(copied)} sounds copied to {config.copy_to}")
        if missing:
            reporter.warn(f"{len(missing)} sounds that were found are not there any more, first: {missing[0]}; not copied")
    if config.open:
        _open_best(answers)
    return written


def _write_csv(path: Path, answers: Answers) -> None:
    with (
        _writing(path, "--csv") as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for answer in answers:
            for hit in answer["hits"]:
                row = hit | {"query": answer["query"], "caption": next(iter(hit["captions"]), "")}
                row |= {"labels": "; ".join(hit["labels"])}
                writer.writerow(["" if row[name] is None else row[name] for name in _COLUMNS])


def _write_playlist(path: Path, answers: Answers) -> None:
    """Extended M3U: with the span, so that players that know it start there."""
    lines = ["#EXTM3U"]
    for hit in _sounds(answers):
        start_s, end_s = hit["start_s"], hit["end_s"]
        length = "-1" if start_s is None or end_s is None else f"{end_s - start_s:.3f}"
        lines.append(f"#EXTINF:{length},{_one_line(hit['id'])}")
        if start_s:
            lines += [f"#EXTVLCOPT:start-time={start_s:.3f}", f"#EXTVLCOPT:stop-time={end_s:.3f}"]
        lines.append(_one_line(hit["path"]))
    with _writing(path, "--playlist") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def _copy(folder: Path, answers: Answers) -> tuple[list[str], list[str]]:
    """Copy every sound once, its best rank in front of its name; gives the copies and the sounds that are gone."""
    copied, missing = [], []
    seen: set[str] = set()
    several = len(answers) > 1
    for number, answer in enumerate(answers, start=1):
        for hit in _sounds([answer]):
            if hit["path"] in seen:
                continue
            seen.add(hit["path"])
            place = f"{number:03d}-{hit['rank']:03d}" if several else f"{hit['rank']:03d}"
            target = folder / f"{place} {Path(hit['path']).name}"
            if not Path(hit["path"]).is_file():
                missing.append(hit["path"])
                continue
            with _writing(target, "--copy-to") as temporary:
                shutil.copyfile(hit["path"], temporary)
            copied.append(os.fspath(target))
    return copied, missing


def _open_best(answers: Answers) -> None:
    """Hand the best hit to the desktop."""
    best = next(iter(_sounds(answers)), None)
    if best is None:
        return
    if not Path(best["path"]).is_file():
        raise AudioError(f"--open: {best['path']} is not there any more; restore it or embed again")
    opener = {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
    program = shutil.which(opener)
    if program is None:
        raise ConfigError(f"--open: {opener} is not installed here; open {best['path']} yourself")
    nowhere = subprocess.DEVNULL
    try:
        # In a session of its own: an interrupt of the search is none of the player.
        subprocess.Popen([program, best["path"]], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
    except OSError as error:
        raise ConfigError(f"--open: {program} cannot be started ({error.strerror}); open {best['path']} yourself") from error


def _sounds(answers: Answers) -> list[Mapping[str, Any]]:
    """The hits that are sounds, or at least say which sound they belong to."""
    return [hit for answer in answers for hit in answer["hits"] if hit["path"]]


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")


@contextlib.contextmanager
def _writing(path: Path, option: str) -> Any:
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise RunDirError(f"{option} {path}: cannot be written ({error.strerror or error}); name another place") from error
