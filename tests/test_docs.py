"""The documentation is true: its tables come from the code, its commands parse, its examples run, its links lead somewhere.

The tables of ``docs/cli.md`` are generated here. To write them anew after a change of options::

    CLAPKIT_WRITE_DOCS=1 python -m pytest tests/test_docs.py -k tables
"""

import dataclasses
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

import clapkit
from clapkit import registry
from clapkit.cli import app
from clapkit.cli.options import flags_of, help_of
from clapkit.config import CONFIGS, CommonConfig, EmbedConfig, resolve
from clapkit.encoders.clap import to_transformers
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.heads import ProjectionHead
from clapkit.encoders.loading import load
from clapkit.encoders.pretrained import WithoutDrawing
from clapkit.run_dir import RunDir
from clapkit.steps import embed
from clapkit.types import SilentReporter

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PAGE_OF_KIND = {
    "loss": "objectives.md",
    "schedule": "objectives.md",
    "term": "objectives.md",
    "audio encoder": "encoders.md",
    "text encoder": "encoders.md",
    "recipe": "corpora.md",
    "metric": "metrics.md",
    "task": "metrics.md",
    "index": "search.md",
}
PLUGINS = [(kind, name) for kind in PAGE_OF_KIND for name in registry.names(kind)]


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("path", PAGES, ids=page_name)


# Tables of the command line ---------------------------------------------------------------------------------------------


def options_table(fields: list[dataclasses.Field]) -> str:
    """Markdown table of configuration fields; arguments first, as on the command line."""
    lines = ["| Option | Meaning | Default |", "|---|---|---|"]
    lines += [_row(field) for field in sorted(fields, key=lambda field: not field.metadata["argument"])]
    return "\n".join(lines)


def _row(field: dataclasses.Field) -> str:
    if field.metadata["argument"]:
        option = f"`{field.name.upper()}`" + ("..." if field.default == () else "")
    else:
        option = ", ".join(f"`{flag}`" for flag in flags_of(field)) + _placeholder(field)
    meaning, _, note = help_of(field).partition(" [default: ")
    return f"| {option} | {meaning} | {note.removesuffix(']')} |".replace("|  |", "| |")


def _placeholder(field: dataclasses.Field) -> str:
    kinds = {"int": " N", "float": " X", "Path": " PATH", "bool": ""}
    return next((shown for kind, shown in kinds.items() if kind in str(field.type)), " TEXT")


def option_tables() -> dict[str, str]:
    common = {field.name for field in dataclasses.fields(CommonConfig)}
    tables = {"every command": options_table(list(dataclasses.fields(CommonConfig)))}
    for name, config_class in CONFIGS.items():
        tables[name] = options_table([field for field in dataclasses.fields(config_class) if field.name not in common])
    return tables


def with_tables(text: str) -> str:
    for name, table in option_tables().items():
        pattern = re.compile(rf"(<!-- options: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        assert count == 1, f"docs/cli.md: expected one place for the table {name!r}, found {count}"
    return text


def test_tables_of_the_command_line_are_those_of_the_code() -> None:
    path = DOCS / "cli.md"
    expected = with_tables(path.read_text(encoding="utf-8"))
    if os.environ.get("CLAPKIT_WRITE_DOCS"):
        path.write_text(expected, encoding="utf-8")
    remedy = "run CLAPKIT_WRITE_DOCS=1 python -m pytest tests/test_docs.py -k tables"
    assert path.read_text(encoding="utf-8") == expected, f"docs/cli.md is not what the code says; {remedy}"


# Plug-ins ---------------------------------------------------------------------------------------------------------------


def section(text: str, name: str) -> str:
    """The part of a page under the heading of a plug-in; the whole page if it has none."""

    def folded(title: str) -> str:
        return re.sub(r"[^a-z0-9]", "", title.lower())

    headings = list(re.finditer(r"^(#+) (.+)$", text, re.MULTILINE))
    for number, heading in enumerate(headings):
        if folded(heading[2]) == folded(name):
            later = [other.start() for other in headings[number + 1 :] if len(other[1]) <= len(heading[1])]
            return text[heading.start() : later[0] if later else len(text)]
    return text


@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=lambda value: value.replace(" ", "-"))
def test_every_plugin_and_all_its_options_are_documented(kind: str, name: str) -> None:
    page = prose((DOCS / PAGE_OF_KIND[kind]).read_text(encoding="utf-8"))
    shown = name.replace("_", "-") if kind == "task" else name
    part = section(page, shown)
    assert part != page or f"`{shown}`" in page
    missing = [option for option in registry.defaults(kind, name) if f"`{option}`" not in part]
    assert not missing, f"{PAGE_OF_KIND[kind]}, {kind} {name}: options {missing} are not documented"


def test_a_page_per_kind_of_plugin() -> None:
    assert set(PAGE_OF_KIND) == set(registry.PACKAGES)


# Pages and links --------------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8")))


@each_page
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    broken = []
    for link in links(path):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


@each_page
def test_every_page_has_one_title_and_comes_to_its_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", prose(text), re.MULTILINE)) == 1
    assert path.name in ("README.md", "changelog.md") or "After this page" in text.split("\n## ")[0]


def test_every_page_is_linked() -> None:
    linked = {(path.parent / link.partition("#")[0]).resolve() for path in PAGES for link in links(path) if "://" not in link}
    assert {path.resolve() for path in DOCS.glob("*.md")} <= linked


@each_page
def test_no_page_names_a_private_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home|Users|mnt)\b", text)
    # No host at all, by address or by the ending of its name: pages say what to install, not from where. Forms of addresses
    # with a placeholder are none.
    text = re.sub(r"\b(?:s3|gs|az|milvus\+https?)://(?:BUCKET|HOST|…)", "", text)
    assert not re.search(
        r"://|\b[\w-]+\.(?:org|com|io|net|dev)\b|index-url|localhost|\b\d+\.\d+\.\d+\.\d+\b", text, re.IGNORECASE
    )


# Commands ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and the line before it."""

    language: str
    text: str
    above: str


def blocks(path: Path) -> list[Block]:
    pattern = re.compile(r"^(?P<above>[^\n]*)\n+```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
    found = pattern.finditer("\n" + path.read_text(encoding="utf-8"))
    return [Block(match["language"], match["text"], match["above"]) for match in found]


def shell_commands(text: str) -> list[list[str]]:
    """Words of every ``clapkit`` call in a shell text; of a ``for`` loop the first turn."""
    for variable, value in re.findall(r"for (\w+) in (\S+)", text):
        text = re.sub(rf"\$\{{?{variable}\b\}}?", value, text)
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        current: list[str] | None = None
        for word in words:
            if set(word) <= set("();<>|&"):
                current = None
            elif word == "clapkit":
                found.append(current := [])
            elif current is not None:
                current.append(word)
    return found


def page_commands(path: Path) -> list[list[str]]:
    """All calls in the blocks and in the text of a page, without those that leave something open."""
    texts = [block.text for block in blocks(path) if block.language in ("", "bash")]
    texts += re.findall(r"`(clapkit [^`\n]+)`", prose(path.read_text(encoding="utf-8")))
    commands = [command for text in texts for command in shell_commands(text)]
    return [command for command in commands if not re.search(r"[…<]|\[-|\.\.\.|NAME", " ".join(command))]


@functools.cache
def command_line() -> typer.core.TyperGroup:
    return typer.main.get_command(app)


def parsed(command: list[str]) -> dict:
    """What Typer makes of the words behind ``clapkit``; raises as it would on the command line."""
    if command[0].startswith("-"):
        assert command in (["--version"], ["--help"])
        return {}
    context = command_line().commands[command[0]].make_context(command[0], [word for word in command[1:] if word != "--help"])
    return context.params


@each_page
def test_every_command_parses(path: Path) -> None:
    for command in page_commands(path):
        values = parsed(command)
        if values:
            given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            resolve(CONFIGS[command[0]], {key: value for key, value in given.items() if key != "config"})


def test_a_command_with_a_wrong_flag_does_not_parse() -> None:
    with pytest.raises(Exception, match="No such option: --radious"):
        parsed(["train", "--radious", "adaptive"])


def test_the_pages_hold_commands_to_check() -> None:
    assert len(page_commands(ROOT / "README.md")) > 10
    assert ["train", "--resume", "--name", "svr"] in page_commands(DOCS / "quickstart.md")


def setup_commands() -> list[str]:
    texts = [block.text for block in blocks(ROOT / "README.md")]
    return [text.strip() for text in texts if "pip install" in text]


def test_the_readme_has_two_setup_commands_of_one_line() -> None:
    commands = setup_commands()
    assert len(commands) == 2
    assert not any("\n" in command for command in commands)
    install, test = commands
    assert install.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install . && clapkit prepare && ")
    assert [words[0] for words in shell_commands(install)] == ["prepare", "train", "embed", "eval", "retrieve"]
    assert test == ". .venv/bin/activate && pip install '.[test]' && python -m pytest -n auto"


# Examples that run ------------------------------------------------------------------------------------------------------

# A corpus and towers that take seconds; the last spelling of an option wins.
SMALL = {
    "prepare": ["-O", "num_clips=60"],
    "train": ["--audio-encoder", "tiny", "--text-encoder", "tiny", "--epochs", "1", "--batch-size", "16"],
    "eval": ["--bootstrap", "20"],
}


def test_the_quickstart_runs(workplace: Path, clapkit_call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = workplace / "home" / "sounds" / "footsteps"
    sounds.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(workplace / "home"))
    for number in range(3):
        soundfile.write(sounds / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 8000), 8000)
    commands = [command for block in blocks(DOCS / "quickstart.md") for command in shell_commands(block.text)]
    for command in commands:
        words = [os.path.expanduser(word) for word in command]
        small = [] if "--resume" in command or command[1:2] == ["~/sounds"] else SMALL.get(command[0], [])
        result = clapkit_call(*words, *small)
        assert result.exit_code == 0, f"clapkit {shlex.join(command)}: {result.stderr}"
    assert len(commands) > 10
    assert (workplace / "runs/eval/compared/comparison.md").is_file()


def python_blocks() -> Iterator[tuple[Path, list[Block]]]:
    for path in PAGES:
        found = [block for block in blocks(path) if block.language == "python"]
        if found:
            yield path, found


PYTHON_PAGES = list(python_blocks())


def adds_files(found: list[Block]) -> bool:
    """Whether a page tells the reader to write files into the package."""
    return any(file_name(block) for block in found)


def file_name(block: Block) -> str | None:
    name = re.fullmatch(r"`(clapkit/[\w/]+\.py)`:", block.above)
    return name[1] if name else None


def id_of(value: object) -> str:
    return page_name(value) if isinstance(value, Path) else "blocks"


@pytest.mark.parametrize(("path", "found"), [page for page in PYTHON_PAGES if not adds_files(page[1])], ids=id_of)
def test_python_examples_run(
    path: Path, found: list[Block], tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.name == "pretrained.md":
        make_fine_tuned(tmp_path, request.getfixturevalue("clap_folder"))
        warnings.simplefilter("ignore")  # transformers warns of itself; pytest sets it back
    elif path.name == "search.md":
        make_library(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLAPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLAPKIT_RUNS", raising=False)
    exec(compile("\n".join(block.text for block in found), page_name(path), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("path", "found"), [page for page in PYTHON_PAGES if adds_files(page[1])], ids=id_of)
def test_python_examples_run_with_the_files_that_a_page_adds(path: Path, found: list[Block], tmp_path: Path) -> None:
    """In a copy of the package, into which the files go."""
    shutil.copytree(Path(clapkit.__file__).parent, tmp_path / "clapkit", ignore=shutil.ignore_patterns("__pycache__"))
    script = []
    for block in found:
        name = file_name(block)
        if name:
            assert not (tmp_path / name).exists(), f"{name} is taken"
            (tmp_path / name).write_text(block.text, encoding="utf-8")
        else:
            script.append(block.text)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "CLAPKIT_CACHE": str(tmp_path / "cache")}
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr[-3000:]


def test_some_pages_have_examples_and_one_adds_files() -> None:
    assert len(PYTHON_PAGES) >= 6
    assert [page_name(path) for path, found in PYTHON_PAGES if adds_files(found)] == ["docs/extending.md"]


def make_fine_tuned(place: Path, clap_folder: Path) -> None:
    """What the page about models of others reads: a run with its two forms of the model, and a sound."""
    run = place / "runs" / "train" / "fine-tuned"
    model = load(clap_folder)
    model.save(run / "model")
    to_transformers(model, run / "export")
    soundfile.write(place / "rain.wav", np.random.default_rng(0).normal(0, 0.1, 48000), 48000)


def make_library(place: Path) -> None:
    """What the page about search reads: a model, two sounds, and an embed run of them."""
    for number, name in enumerate(("rain", "door")):
        soundfile.write(place / f"{name}.wav", np.random.default_rng(number).normal(0, 0.1, 24000), 8000)
    train = RunDir.create(place / "runs/train/first", step="train", config={})
    DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": ["rain"]}).save(train.model_dir)
    train.finish({})
    run_dir = RunDir.create(place / "runs/embed/library", step="embed", config={})
    files = tuple(str(place / f"{name}.wav") for name in ("rain", "door"))
    config = EmbedConfig(inputs=files, model=str(train.model_dir), runs_root=place / "runs", device="cpu")
    run_dir.finish(embed.run(config, run_dir, SilentReporter()))


def test_the_extending_page_covers_every_kind() -> None:
    files = [re.fullmatch(r"`clapkit/([\w/]+)/\w+\.py`:", block.above) for block in blocks(DOCS / "extending.md")]
    covered = {"clapkit." + match[1].replace("/", ".") for match in files if match}
    assert covered == set(registry.PACKAGES.values())


# Facts about towers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "small", "tiny"])
def test_sizes_of_audio_towers_are_those_of_the_code(name: str) -> None:
    tower = registry.build("audio encoder", name)
    spec, size = tower.audio_spec, sum(parameter.numel() for parameter in tower.parameters())
    demands = f"{spec.sample_rate / 1000:g} kHz, windows of {spec.window_s:g} s, {tower.log_mel.num_mels} mel bins"
    row = f"| audio `{name}` | {size:,} | {tower.embedding_dim} | {demands} |"
    assert row in (DOCS / "encoders.md").read_text(encoding="utf-8"), f"docs/encoders.md: expected {row}"


@pytest.mark.parametrize("name", ["light", "small", "tiny"])
def test_sizes_of_text_towers_are_those_of_the_code(name: str) -> None:
    tower = registry.build("text encoder", name, {"captions": ["a dog barks"]})
    size = sum(parameter.numel() for parameter in tower.parameters()) - tower.tokens.weight.numel()
    parameters = f"{size:,}, and {tower.tokens.embedding_dim} for each subword"
    row = f"| text `{name}` | {parameters} | {tower.embedding_dim} | at most {tower.subwords.max_tokens} subwords |"
    assert row in (DOCS / "encoders.md").read_text(encoding="utf-8"), f"docs/encoders.md: expected {row}"


@pytest.mark.parametrize("name", ["tiny", "mini", "small", "base"])
def test_sizes_of_ced_are_those_of_the_code(name: str) -> None:
    with WithoutDrawing():
        tower = registry.build("audio encoder", "ced", {"size": name})
    size = sum(parameter.numel() for parameter in tower.parameters()) / 1e6
    row = f"| `{name}` | {tower.embedding_dim} | {tower.embedding_dim // 64} | {size:.1f} M |"
    assert row in (DOCS / "encoders.md").read_text(encoding="utf-8"), f"docs/encoders.md: expected {row}"


def test_sizes_of_projection_heads_are_those_of_the_code() -> None:
    heads = [ProjectionHead(width, 512) for width in (512, 192)]
    size = sum(parameter.numel() for head in heads for parameter in head.parameters())
    assert f"the two projection heads of `small` have {size:,} parameters" in (DOCS / "encoders.md").read_text(encoding="utf-8")
