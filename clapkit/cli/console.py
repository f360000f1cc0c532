"""All that clapkit prints: results on standard output, everything for people in front of it on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from clapkit.files import to_json, to_json_line
from clapkit.run_dir import RunDir
from clapkit.scales import decimals, is_fraction
from clapkit.types import SilentReporter, Tracker

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Console:
    """Messages, progress bars and tables; a ``Reporter`` for the steps.

    Args:
        json_mode: results are one JSON document on standard output.
        quiet: no messages and no progress.
    """

    def __init__(self, *, json_mode: bool = False, quiet: bool = False) -> None:
        self.json_mode, self.quiet = json_mode, quiet
        self._run_dir: RunDir | None = None

    def attach(self, run_dir: RunDir) -> None:
        """Also write messages to the log of a run."""
        self._run_dir = run_dir

    def say(self, message: str) -> None:
        """Show a message, unless quiet."""
        message = _one_line(message)
        self._log(message)
        if not self.quiet:
            print(message, file=sys.stderr)

    def warn(self, message: str) -> None:
        """Show a warning, even when quiet."""
        line = f"warning: {_one_line(message)}"
        self._log(line)
        print(line, file=sys.stderr)

    def error(self, message: str) -> None:
        """Show the one line that says why the work could not be done."""
        line = f"error: {_one_line(message)}"
        self._log(line)
        print(line, file=sys.stderr)

    def track(self, description: str, total: int | None, unit: str = "") -> AbstractContextManager[Tracker]:
        """A progress bar where someone watches, nothing otherwise."""
        if self.quiet or not sys.stderr.isatty():
            return SilentReporter().track(description, total, unit)
        return self._bar(description, total, unit)

    @contextlib.contextmanager
    def _bar(self, description: str, total: int | None, unit: str) -> Iterator[Tracker]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}"),
        )
        with Progress(*columns, console=RichConsole(stderr=True)) as progress:
            task = progress.add_task(description, total=total, speed="", extra="")
            yield _Bar(progress, task, unit)

    def result(self, result: Mapping[str, Any], *, tables: Sequence[Table] = ()) -> None:
        """Print the outcome: JSON, or tables for people."""
        if self.json_mode:
            sys.stdout.write(to_json(result))
            return
        for table in tables:
            table.show()

    def answer(self, result: Mapping[str, Any], *, tables: Sequence[Table] = ()) -> None:
        """Print one of several outcomes at once: a line of JSON, or tables for people."""
        if self.json_mode:
            sys.stdout.write(to_json_line(result))
        else:
            self.result(result, tables=tables)
        sys.stdout.flush()

    def prompt(self, text: str) -> None:
        """Ask for a line, where somebody types."""
        if sys.stdin.isatty():
            print(text, end="", file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """Print plain text on standard output."""
        print(text)

    def _log(self, message: str) -> None:
        if self._run_dir is not None:
            self._run_dir.log(message)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, unit: str) -> None:
        self._progress, self._task, self._unit = progress, task, unit

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Move the bar; fields are shown behind it."""
        extra = "  ".join(f"{key} {value}" for key, value in fields.items())
        self._progress.update(self._task, advance=amount, extra=extra)
        speed = self._progress.tasks[self._task].speed
        if speed and self._unit:
            self._progress.update(self._task, speed=f"{speed:.1f} {self._unit}/s")


class Table:
    """Rows of text under headings.

    Args:
        title: shown above the table.
        columns: headings; a leading ``>`` aligns the column to the right. Without any, the title is all.
        rows: one text per column.
    """

    def __init__(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.title, self.columns, self.rows = title, columns, rows

    def show(self) -> None:
        """Print to standard output."""
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in self.columns:
            right = column.startswith(">")
            table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        console = RichConsole(width=None if sys.stdout.isatty() else 120)
        console.print(Text(self.title, style="bold"))
        if self.columns:
            console.print(table)


def _one_line(message: str) -> str:
    """A message without line breaks and control characters, which names of files may hold."""
    message = " ".join(message.split())
    return message if message.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


def show_metric(name: str, value: float) -> str:
    """A metric as tables show it: fractions in percent, everything else as it is."""
    digits = decimals(name)
    return f"{100 * value:.{digits}f} %" if is_fraction(name) else f"{value:.{digits}f}"
