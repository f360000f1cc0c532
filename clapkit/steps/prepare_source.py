"""What a call of ``prepare`` reads: the recipe that is meant, its source, and where audio paths start from."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol, runtime_checkable

from clapkit import registry
from clapkit.config import PrepareConfig
from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._shard_paths import is_pattern
from clapkit.data.tables import TABLE_SUFFIXES
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.types import Recipe

DEFAULT_RECIPE = "synth"
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Recipe -> suffixes of its files; a folder of these, and without sounds, is meant for it.
_OF_SUFFIXES = {"webdataset": (".tar",), "hf": (".parquet", ".arrow")}
# Recipes that read what prepare has written; their source may be the name of a run.
_READ_RUNS = ("manifest", "mix")
# Recipes whose corpora are called like their source.
_NAMELESS = ("folder", "table", "webdataset", "hf")


@runtime_checkable
class _FindsRoot(Protocol):
    """A recipe whose audio paths start elsewhere than at the source."""

    def find_root(self, source: Path) -> Path: ...


def recognise(recipe: str | None, source: str | None, *, runs_root: Path = Path("runs")) -> tuple[str, Path | None]:
    """Which recipe is meant: its name, or a folder, table or run given in its place.

    Args:
        recipe: first argument of the command.
        source: second argument of the command.
        runs_root: where runs live that may be named.

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
        return recipe, None if source is None else _source(recipe, source, runs_root)
    path = Path(recipe).expanduser()
    if source is not None and (path.exists() or is_pattern(recipe)):
        raise ConfigError(f"{recipe} and {source}: two sources found, expected RECIPE SOURCE or one folder or table")
    if path.is_dir():
        return _recipe_of_folder(path), path
    if recipe.endswith(SHARD_SUFFIXES) and (path.is_file() or is_pattern(recipe)):
        return "webdataset", path
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            expected = ", ".join(TABLE_SUFFIXES)
            raise ManifestError(f"{recipe}: is no table, expected a folder or a {expected} file; name another")
        return ("manifest" if _is_manifest(path) else "table"), path
    if "/" in recipe or recipe.startswith((".", "~")) or path.suffix.lower() in TABLE_SUFFIXES:
        raise ManifestError(f"{recipe}: no such file or folder; expected a folder, a table or a recipe's name")
    raise UnknownNameError(
        "recipe", recipe, registry.names("recipe"), hint="or name a folder or a table (.csv, .tsv, .jsonl, .json, .parquet)"
    )


def check_source(name: str, recipe: Recipe, source: Path | None, audio_dir: Path | None) -> None:
    """Make sure that a recipe gets what it reads.

    Raises:
        ConfigError: if a source is missing or superfluous.
        ManifestError: if there is nothing at the path.
    """
    if source is None and recipe.needs_source:
        here = f", or `clapkit prepare ./{name}` for the folder" if Path(name).is_dir() else ""
        raise ConfigError(f"recipe {name}: no source given, expected one; run `clapkit prepare {name} SOURCE`{here}")
    if source is not None and not recipe.needs_source:
        raise ConfigError(f"recipe {name}: reads nothing, but source {source} is given; leave it out")
    for path in (source, audio_dir):
        if path is not None and not path.exists() and not (path is source and name == "webdataset" and is_pattern(str(path))):
            raise ManifestError(f"{path}: no such file or folder; correct the path")


def audio_root(recipe: Recipe, source: Path | None, config: PrepareConfig, output_dir: Path) -> Path:
    """Where relative audio paths start from."""
    if recipe.makes_audio:
        return output_dir / getattr(recipe, "root_name", "")
    assert source is not None, "a recipe that makes no audio needs a source"
    if config.audio_dir is None and isinstance(recipe, _FindsRoot):
        return recipe.find_root(source).absolute()
    return (config.audio_dir or (source if source.is_dir() else source.parent)).absolute()


def corpus_name(name: str, recipe: Recipe, source: Path | None) -> str:
    """How reports call the corpus, asked after its clips."""
    given = getattr(recipe, "corpus_name", None)
    if given is not None:
        return str(given)
    if source is None or name not in _NAMELESS:
        return name
    if not source.exists():  # a pattern over shards
        return source.parent.name or name
    return source.name.partition(".")[0] if source.is_file() else source.resolve().name


def _source(recipe: str, source: str, runs_root: Path) -> Path:
    path = Path(source).expanduser()
    named = runs_root / "prepare" / source
    return named if recipe in _READ_RUNS and not path.exists() and named.is_dir() else path


def _recipe_of_folder(folder: Path) -> str:
    if (folder / "manifest.jsonl").is_file() and (folder / "run.json").is_file():
        return "manifest"
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return "hf"
    return (
        "folder"
        if _holds(folder, AUDIO_SUFFIXES)
        else next((name for name, suffixes in _OF_SUFFIXES.items() if _holds(folder, suffixes)), "folder")
    )


def _holds(folder: Path, suffixes: Collection[str]) -> bool:
    """Whether a folder, or one right below it, holds a file with one of some suffixes."""
    return any(path.suffix.lower() in suffixes for pattern in ("*", "*/*") for path in folder.glob(pattern))


def _is_manifest(path: Path) -> bool:
    if path.suffix.lower() != ".jsonl":
        return False
    try:
        with path.open("rb") as file:
            return b'"clapkit_manifest"' in file.readline(1000)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); make it readable or name another file") from error
