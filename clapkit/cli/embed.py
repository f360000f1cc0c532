"""``clapkit embed``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from clapkit.cli import resume
from clapkit.cli.console import Console, Table
from clapkit.cli.execute import console_for, execute, is_follower, run_path
from clapkit.config import EmbedConfig, resolve
from clapkit.errors import ClapkitError
from clapkit.run_dir import RunDir
from clapkit.runs import newest_run, open_run

HELP = """Embed a prepared corpus, folders, files or captions with a trained model.

\b
    clapkit embed
    clapkit embed ~/sounds --pool none
    clapkit embed ~/sounds --name library
    clapkit embed --update --name library
    clapkit embed captions.txt --modality text
"""


def configure(given: dict[str, Any]) -> EmbedConfig:
    """The configuration of a call; of an update with what the run recorded, on ``--resume`` that of the unfinished run."""
    config = resolve(EmbedConfig, given)
    if is_follower():
        return config
    with _nothing_to_do_on_error():
        if config.update:
            return _configure_update(config, given)
        # What is made of the vectors may change: a mistyped address must not cost the hours that they took.
        return resume.configure("embed", EmbedConfig, given, may_start=True, may_change=("index", "options", "push"))


def _configure_update(config: EmbedConfig, given: dict[str, Any]) -> EmbedConfig:
    from clapkit.steps.embed_options import check
    from clapkit.steps.embed_update import recorded_options

    # Before a finished run is taken for one that has nothing left to do.
    check(config)
    if config.run_dir is not None or config.name is not None:
        run = open_run(os.fspath(run_path("embed", config)), step="embed", runs_root=config.runs_root)
    else:
        run = newest_run("embed", runs_root=config.runs_root)
    explicit = {key: value for key, value in given.items() if value is not None}
    recorded = recorded_options(run.path, with_input=not config.inputs)
    return resolve(EmbedConfig, recorded | explicit | {"run_dir": run.path, "name": None, "update": True})


def run(config: EmbedConfig, argv: list[str]) -> None:
    """Embed, then print what was written."""
    if is_follower():
        from clapkit.steps.embed_processes import run_follower

        run_follower()
        return
    console = console_for(config)
    finished = resume.finished_already(config)
    if finished is not None:
        result = finished.result
        console.say(f"{finished.path}: finished already, nothing to resume")
        _dismiss_followers()
    else:
        result = _embed(config, argv, console)
    console.result(result, tables=[_summary(result)])


def _embed(config: EmbedConfig, argv: list[str], console: Console) -> dict[str, Any]:
    from clapkit.steps import embed

    begun: list[bool] = []

    def run_step(config: EmbedConfig, run_dir: RunDir, reporter: Console) -> dict[str, Any]:
        begun.append(True)
        return embed.run(config, run_dir, reporter)

    with _nothing_to_do_on_error(begun):
        _, result = execute("embed", config, argv, run_step, console)
    if not begun:  # --skip-existing
        _dismiss_followers()
    return result


@contextlib.contextmanager
def _nothing_to_do_on_error(begun: Sequence[bool] = ()) -> Iterator[None]:
    """Send other processes home where the work fails before it has begun; they would wait for the first one."""
    try:
        yield
    except ClapkitError:
        if not begun:
            _dismiss_followers()
        raise


def _dismiss_followers() -> None:
    """Send other processes home: there is nothing to do."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from clapkit.steps.embed_processes import dismiss

        dismiss()


def _summary(result: dict[str, Any]) -> Table:
    rows = [[f"{modality} vectors", str(count)] for modality, count in result["counts"].items()]
    rows += [["width", str(result["width"])], ["rejected", str(result["num_rejected"])]]
    rows += [[kind, str(count)] for kind, count in result.get("changes", {}).items()]
    return Table(f"Embedded {result['data']['name']}", ["", ">count"], rows)
