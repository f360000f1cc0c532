"""The house stands: imports point downwards, and the front door opens without torch."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clapkit

PACKAGE = Path(clapkit.__file__).parent
CORE = ("data", "encoders", "objectives", "training", "metrics", "index", "report")
FOUNDATION = {"types", "errors", "registry", "scales"}
ALLOWED = {
    **{core: FOUNDATION | {core} for core in CORE},
    "cli": {"cli", "config", "registry", "errors", "files", "run_dir", "runs", "scales", "types", "steps"},
    "library": {"config", "errors", "types", "steps", "data"},
    "steps": {"steps", "config", "files", "run_dir", "runs", *FOUNDATION, *CORE},
    "config": {"errors"},
    "files": {"errors"},
    "run_dir": {"errors", "files"},
    "runs": {"errors", "files", "run_dir"},
    "registry": {"errors"},
    "types": set(),
    "scales": set(),
    "errors": set(),
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__"))


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    """What the source of a module is made of, read once for all tests."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(nodes: list[ast.AST]) -> set[str]:
    """Parts of clapkit that a module imports when it runs (not for annotations only)."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                for inner in ast.walk(child):
                    inner.__dict__["skip"] = True
    for node in nodes:
        if getattr(node, "skip", False):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("clapkit."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "clapkit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("clapkit.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    forbidden = imports(nodes_of(path)) - ALLOWED[part]
    assert not forbidden, f"{path.name} is in {part} and may not import {sorted(forbidden)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_console_prints(path: Path) -> None:
    calls = [
        node.lineno
        for node in nodes_of(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls or path.name == "console.py"


def loaded_after(arguments: list[str], tmp_path: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running the command line."""
    script = (
        "import sys\n"
        "from clapkit.cli import main\n"
        f"sys.argv = ['clapkit', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted(m for m in sys.modules if '.' not in m))"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    return set(completed.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["prepare", "--list"]])
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    heavy = {"torch", "torchaudio", "transformers", "pandas", "numpy", "pyarrow", "matplotlib", "soundfile"}
    assert not loaded_after(arguments, tmp_path) & heavy


def test_every_module_can_be_imported_alone() -> None:
    names = [
        ".".join(("clapkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__") for path in modules()
    ]
    script = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names)
    subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", script],
        check=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )


def test_the_public_names_are_sorted_and_exist() -> None:
    assert clapkit.__all__ == sorted(clapkit.__all__)
    for name in clapkit.__all__:
        assert getattr(clapkit, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        clapkit.nonsense  # noqa: B018
