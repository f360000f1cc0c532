"""The command line: five commands, and the one place where errors become exit codes.

Nothing heavy is imported here, so that ``clapkit --help`` answers at once.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

import clapkit
from clapkit.cli import embed, eval, prepare, retrieve, train
from clapkit.cli.options import command_function
from clapkit.config import CONFIGS, CommonConfig, resolve
from clapkit.errors import ClapkitError, ConfigError

EXIT_FAILURE, EXIT_INTERRUPTED = 1, 130
Configure = Callable[[dict[str, Any]], CommonConfig]

app = typer.Typer(
    help="Prepare audio-caption data, train contrastive language-audio models, embed, retrieve and evaluate.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"clapkit {clapkit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version.", callback=_version, is_eager=True),
) -> None: ...


def _register(name: str, run: Callable[[Any, list[str]], None], help: str, configure: Configure | None = None) -> None:
    def guarded(given: dict[str, Any]) -> None:
        sys.exit(_exit_code(configure or functools.partial(resolve, CONFIGS[name]), run, given))

    app.command(name)(command_function(CONFIGS[name], guarded, help))


def _exit_code(configure: Configure, run: Callable[[Any, list[str]], None], given: dict[str, Any]) -> int:
    from clapkit.cli.console import Console

    try:
        _expect_text(sys.argv)
        run(configure(given), sys.argv)
        sys.stdout.flush()  # here, where a reader that has gone can still be handled
    except ClapkitError as error:
        Console().error(str(error))
        if given.get("verbose"):
            raise
        return EXIT_FAILURE
    except KeyboardInterrupt:
        Console().error("interrupted; what was finished stays valid")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read standard output has gone, for example `clapkit retrieve … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or given.get("verbose"):
            raise
        where = f"{error.filename}: cannot be written, " if error.filename else ""
        Console().error(f"{where}the disk is full; make room and run the command again, with --resume if it has that option")
        return EXIT_FAILURE
    return 0


def _expect_text(arguments: Sequence[str]) -> None:
    """Refuse what no run directory could record.

    Raises:
        ConfigError: if an argument is no text.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{ascii(argument)}: is no UTF-8 text, expected an argument that can be recorded; rename the file, or name "
                "the folder that it lies in"
            ) from error


_register("prepare", prepare.run, prepare.HELP, prepare.configure)
_register("train", train.run, train.HELP, train.configure)
_register("embed", embed.run, embed.HELP, embed.configure)
_register("retrieve", retrieve.run, retrieve.HELP)
_register("eval", eval.run, eval.HELP)


def main() -> None:
    """Entry point of the ``clapkit`` command."""
    # SIGTERM ends a command like Ctrl-C: its run directory says so, and nothing is left half-written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Corpora are hundreds of thousands of small objects that live to the end; at the default, looking through them for
    # garbage takes two fifths of the time that loading a manifest takes.
    gc.set_threshold(50_000, 20, 50)
    try:
        app()
    finally:
        # What is left goes with the process; to look through all objects of torch for garbage first takes half a second.
        gc.freeze()
