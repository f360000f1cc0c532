"""One frozen dataclass per command: every knob with its unit, its default and its help text, in one place.

The command line, ``--config`` files, ``run.json`` and the reference page are all derived from these fields. A default stands
here and nowhere else. Options of plug-ins live with the plug-ins; fields that default to None leave the choice to them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from clapkit.errors import ConfigError, UnknownNameError

Config = TypeVar("Config", bound="CommonConfig")


def option(
    default: Any,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    argument: bool = False,
    identity: bool = True,
    plugin: str | None = None,
) -> Any:
    """A field that is also a command-line option.

    Args:
        default: its value when neither flag nor file gives one.
        help: one sentence for ``--help``.
        flags: spellings; default ``--field-name``.
        argument: positional instead of a flag.
        identity: whether two runs that differ here are different experiments.
        plugin: kind of plug-in that the value names.
    """
    metadata = {"help": help, "flags": flags, "argument": argument, "identity": identity, "plugin": plugin}
    if isinstance(default, tuple | str | int | float | bool | None):
        return field(default=default, metadata=metadata)
    raise TypeError(f"default of an option must be immutable, got {type(default).__name__}")


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Options of every command."""

    run_dir: Path | None = option(None, "Run directory that this call writes.", flags=("--run-dir", "-o"), identity=False)
    name: str | None = option(None, "Name of the run directory under the runs root.", identity=False)
    runs_root: Path = option("runs", "Where runs live and are looked for; environment CLAPKIT_RUNS.", identity=False)
    seed: int = option(0, "Seeds everything that draws.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    json: bool = option(False, "Print one JSON document on standard output.", identity=False)
    quiet: bool = option(False, "Say less on standard error.", flags=("--quiet", "-q"), identity=False)
    verbose: bool = option(False, "Say more on standard error, tracebacks included.", flags=("--verbose", "-v"), identity=False)
    config: Path | None = option(None, "Defaults from a TOML file or from the run.json of an earlier run.", identity=False)
    skip_existing: bool = option(False, "A finished run of the same configuration is success at once.", identity=False)
    overwrite: bool = option(False, "Replace a finished or broken run directory.", identity=False)
    options: tuple[str, ...] = option((), "Option of the chosen plug-in, key=value; repeatable.", flags=("-O",))

    def identity(self) -> dict[str, Any]:
        """The fields that make this experiment what it is, as JSON values."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in dataclasses.fields(self) if f.metadata["identity"]}

    def resolved(self) -> dict[str, Any]:
        """All fields as JSON values, for ``run.json``."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(CommonConfig):
    """Options of ``clapkit prepare``."""

    recipe: str | None = option(
        None, "Recipe, or a folder or table whose recipe is recognised. [default: synth]", argument=True
    )
    source: str | None = option(None, "Folder or file that the recipe reads.", argument=True)
    audio_dir: Path | None = option(None, "Where the audio of a table lies. [default: beside it]")
    split: str | None = option(None, "Put every clip into this split.")
    limit: int | None = option(None, "Take only the first N clips.")
    workers: int | None = option(None, "Processes that decode. [default: one per core]", identity=False)
    strict: bool = option(False, "Any rejected item ends the command with exit code 1.")
    check: Literal["decode", "header"] = option("decode", "Decode every file and listen to it, or trust its header.")
    where: str | None = option(None, "Keep only clips that satisfy this, for example \"duration_s <= 30 and 'dog' in labels\".")
    languages: str | None = option(None, "Keep only captions in these languages, for example en,fr.")
    template: tuple[str, ...] = option(
        (), "Caption made of labels, with {} in it, or none; repeatable. [default: This is a sound of {}., without captions]"
    )
    drop: str | None = option(None, "Leave out clips with these findings of the audit, for example silent,duplicate.")
    exclude: tuple[str, ...] = option(
        (), "Leave out clips by their ids: FILE with a column id or one id a line, FILE:N for its first N; repeatable."
    )
    subtract: tuple[str, ...] = option((), "Leave out recordings of another prepare run, RUN or RUN:SPLIT; repeatable.")
    check_overlap: tuple[str, ...] = option(
        (), "Report recordings that another prepare run holds, too, RUN or RUN:SPLIT; repeatable."
    )
    cache_audio: Literal["flac", "wav"] | None = option(
        None, "Keep decoded copies of the audio, mono: flac of 16 bits or wav of 32-bit floats."
    )
    cache_rate: int | None = option(None, "Sample rate of the copies, Hz. [default: that of each file]")
    export: Literal["webdataset", "hf"] | None = option(
        None, "Also write the clips as tar shards or as a Hugging Face data set."
    )
    shard_size: int | None = option(None, "Clips in each file of the export. [default: 1000]")
    resume: bool = option(False, "Go on with an unfinished run; files looked at are not decoded again.", identity=False)
    list: bool = option(False, "List the recipes.", identity=False)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Options of ``clapkit train``."""

    data: str | None = option(None, "prepare run or manifest to train on. [default: the newest prepare run]")
    val_data: str | None = option(None, "prepare run or manifest to validate on. [default: --data]")
    train_split: str = option("train", "Split to train on.")
    val_split: str = option("val", "Split to validate on; it selects the best checkpoint.")
    loss: str = option("infonce", "Objective.", plugin="loss")
    base: Literal["infonce", "siglip", "svr", "reweighted"] | None = option(
        None, "Base loss of svr and reweighted (infonce, siglip), and of dbpm, alip, compa and hycd. [default: infonce]"
    )
    radius: Literal["adaptive", "static", "fixed", "ratio"] | None = option(None, "Radius model of svr. [default: adaptive]")
    sides: Literal["bi", "uni"] | None = option(None, "svr on both directions or on text to audio only. [default: bi]")
    alpha: float | None = option(None, "Weight of the support-vector term of svr; extra weight of reweighted. [default: 1.0]")
    beta: float | None = option(None, "Weight of the radius penalty of svr. [default: 0.01 where there is one]")
    radius_init: float | None = option(
        None, "Radius (ratio: share of the distance) that svr starts from. [default: 0.25, ratio 0.2]"
    )
    radius_lr: float | None = option(None, "Learning rate of the radius. [default: --lr]")
    radius_bound: Literal["penalty", "hard", "clamp"] | None = option(
        None, "How svr keeps the radius below the distance. [default: penalty]"
    )
    positives: Literal["caption", "clip", "label"] = option(
        "caption", "Pairs that share this are no negatives of each other; label includes caption, caption includes clip."
    )
    temperature: str | None = option(
        None, "Temperature of the loss, learnable, fixed or a schedule. [default: learnable]", plugin="schedule"
    )
    tau: float | None = option(None, "Temperature, at the start where it is learned. [default: 0.07, siglip 0.1]")
    margin: float | None = option(None, "Margin of triplet. [default: 0.2]")
    margin_schedule: str | None = option(
        None, "Margin of triplet, constant or a schedule. [default: constant]", plugin="schedule"
    )
    clusters: str | None = option(None, "clusters.parquet, or a train run that has one. [default: clustered at the start]")
    num_clusters: int | None = option(None, "Clusters to make. [default: square root of the clips, 16 to 2048]")
    features: Literal["tfidf", "text", "audio", "labels"] | None = option(
        None, "Frozen vector of each training clip, for clusters and cwcl. [default: tfidf, of its captions]"
    )
    add: tuple[str, ...] = option((), "Term to add to the loss, NAME=WEIGHT; repeatable.")
    audio_encoder: str = option("small", "Audio tower.", plugin="audio encoder")
    text_encoder: str = option("small", "Text tower.", plugin="text encoder")
    audio_weights: str | None = option(None, "Weights of the audio tower hf or ced: a folder, a file, or a name of the Hub.")
    text_weights: str | None = option(None, "Weights of the text tower hf: a folder or a name of the Hub.")
    init: str | None = option(
        None, "Whole model to start from: train run, model folder, CLAP folder or file, or a name of the Hub."
    )
    embedding_dim: int = option(512, "Width of the joint embedding.")
    freeze: Literal["audio", "text"] | None = option(None, "Tower that is not trained (its projection head is).")
    unfreeze_last: int | None = option(None, "Layers of the frozen tower, counted from its output, that are trained after all.")
    layer_decay: float | None = option(
        None, "Learning rate of each tower layer, as a share of that of the layer behind it. [default: 1]"
    )
    lora: Literal["audio", "text", "both"] | None = option(
        None, "Towers that are trained through low-rank adapters only; needs the extra lora."
    )
    lora_rank: int | None = option(None, "Rank of the adapters. [default: 8]")
    grad_checkpointing: bool = option(
        False, "Compute the layers of the towers again in the backward pass instead of keeping them: less memory, same result."
    )
    compile: bool = option(False, "Compile the towers with torch.compile.")
    batch_size: int = option(32, "Pairs in a batch, over all processes.")
    accum_steps: int = option(1, "Batches, each with its own negatives, whose gradients make one step.")
    grad_cache_chunk: int | None = option(
        None, "Pairs that a process encodes at a time; the loss still sees the whole batch. [default: all]"
    )
    captions_per_clip: int = option(1, "Captions of each clip in a batch; a batch of B pairs then holds B / N clips.")
    false_variants: int | None = option(
        None, "Variants of each caption that are false of its clip, for compa. [default: 3 with compa]"
    )
    true_variants: int | None = option(None, "Parts of each caption that are true of its clip, for compa. [default: 0]")
    variants: str | None = option(
        None,
        "Comma-separated kinds of variants: order, attribute, negation, swap (English, by rules), given (of the manifest)."
        " [default: all]",
    )
    language_strategy: Literal["sample", "all", "anchor"] | None = option(
        None,
        "Captions of a clip with several languages: one language drawn evenly, one caption of each, or the anchor language and"
        " another. [default: any caption]",
    )
    anchor_language: str | None = option(None, "Language that --language-strategy anchor compares with. [default: en]")
    windows: int | None = option(None, "Windows of each clip that are heard in training. [default: 1]")
    fusion: Literal["mean", "attention", "softmax"] | None = option(
        None, "How several windows become one sound: their mean, a learned attention, or as the caption asks. [default: mean]"
    )
    long_captions: Literal["cut", "split"] | None = option(
        None, "Captions longer than the text tower reads: cut, or the mean of their parts. [default: cut]"
    )
    sampler: Literal["random", "cluster", "mined", "unique-caption", "shards"] = option("random", "Which clips share a batch.")
    mine_every: int | None = option(None, "Epochs between searches of the sampler mined. [default: 4]")
    mine_neighbours: int | None = option(None, "Most hard neighbours that a seed of mined brings along. [default: 64]")
    mine_filter: int | None = option(
        None, "Candidates of mined per neighbour that is kept, those with unlike captions; 1 keeps all. [default: 3]"
    )
    epochs: int = option(20, "Passes over the training split.")
    max_steps: int | None = option(None, "Optimiser steps, instead of --epochs.")
    lr: float = option(1e-3, "Peak learning rate of AdamW.")
    weight_decay: float = option(0.01, "Decoupled weight decay on matrices and kernels.")
    warmup_steps: int | None = option(None, "Steps of linear warm-up. [default: 5 % of all, at most 500]")
    schedule: Literal["cosine", "constant"] = option("cosine", "Learning rate after the warm-up.")
    clip_grad: float = option(1.0, "Largest gradient norm; 0 turns clipping off.")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Autocast of the encoders (losses stay in fp32).")
    workers: int | None = option(
        None, "Threads that load audio, in each process. [default: from the cores that are free]", identity=False
    )
    audio_cache: Literal["auto", "memory", "disk", "none"] = option(
        "auto", "Where decoded audio is kept: auto is memory while it fits; it changes nothing but the time.", identity=False
    )
    eval_every: int = option(1, "Epochs between validations.")
    save_every: int | None = option(
        None, "Steps between checkpoints, besides those at validations. [default: none]", identity=False
    )
    log_every: int = option(10, "Steps between lines of metrics.jsonl.", identity=False)
    diagnostics: int | None = option(
        None, "Steps between measurements of drift; they change nothing but the time. [default: none]", identity=False
    )
    keep_best: str = option("t2a_R@1", "Validation metric that selects the best checkpoint.")
    patience: int | None = option(None, "Stop after N validations without a better metric.")
    resume: bool = option(False, "Go on with the unfinished run in the run directory.", identity=False)
    export: Literal["hf"] | None = option(
        None, "Also write the best model as a folder that ClapModel of transformers loads.", identity=False
    )
    log_to: Literal["tensorboard"] | None = option(None, "Also log to TensorBoard event files.", identity=False)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(CommonConfig):
    """Options of ``clapkit embed``."""

    inputs: tuple[str, ...] = option(
        (), "prepare run, manifest, audio files, folders, - for paths on standard input, a text file, or .npy.", argument=True
    )
    model: str | None = option(
        None, "train run, model folder, CLAP folder or file, or a name of the Hub. [default: the newest train run]"
    )
    modality: Literal["audio", "text", "both"] | None = option(
        None, "What to embed. [default: both for data with captions, audio otherwise]"
    )
    split: str | None = option(None, "Only this split. [default: all]")
    lang: str | None = option(None, "Language of captions from a text file, ISO 639-1. [default: en]")
    window_s: float | None = option(None, "Window of long audio, seconds. [default: the model's]")
    hop_s: float | None = option(None, "Step between windows, seconds. [default: the window]")
    pool: Literal["mean", "none"] = option("mean", "One vector per clip, or one per window.")
    batch_size: int = option(32, "Windows (or sentences) in a batch; changes speed, not results.", identity=False)
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Autocast of the encoders.")
    store: Literal["fp16", "fp32"] = option("fp16", "Number format on disk.")
    workers: int | None = option(None, "Threads that load audio. [default: one per core]", identity=False)
    ids: Path | None = option(
        None, "Metadata of a .npy input, one row per vector: Parquet, CSV or JSON lines. [default: beside it]"
    )
    shard: str | None = option(None, "Embed only part i of n, i/n with i from 0; embed --merge puts the parts together.")
    merge: bool = option(False, "The inputs are embed runs, the parts of one table.")
    update: bool = option(
        False, "Bring a finished run up to date: embed what is new or changed, drop what is gone.", identity=False
    )
    resume: bool = option(False, "Go on with an unfinished run; clips that it has are not embedded again.", identity=False)
    cache: Path | None = option(
        None, "File that keeps vectors by sound, model and policy, for this and later runs.", identity=False
    )
    index: Literal["none", "ivf", "hnsw"] = option("none", "Also build an approximate index, with its recall.")
    push: str | None = option(None, "Also load the vectors into an engine: lance:DIR, milvus:FILE.db, milvus+http://HOST/NAME.")


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(CommonConfig):
    """Options of ``clapkit retrieve``."""

    query: tuple[str, ...] = option((), "What to look for, in words.", argument=True)
    audio: tuple[str, ...] = option((), "Audio file to look for similar items of; repeatable.")
    like: tuple[str, ...] = option((), "Id or path of an item of the table to look for similar ones of; repeatable.")
    vectors: Path | None = option(None, "Queries as vectors of the model: .npy, one per row.")
    queries: Path | None = option(None, "Text file with one query per line.")
    minus: tuple[str, ...] = option((), "What the hits should not be like, in words; repeatable.")
    minus_audio: tuple[str, ...] = option((), "The same as an audio file; repeatable.")
    minus_weight: float = option(0.5, "Share of it that is subtracted from each query.")
    combine: bool = option(False, "Make one query of all that are given, the mean of their vectors.")
    embeddings: str | None = option(None, "embed run, or vectors of any model as .npy. [default: the newest embed run]")
    ids: Path | None = option(
        None, "Metadata of a .npy table, one row per vector: Parquet, CSV or JSON lines. [default: beside it]"
    )
    model: str | None = option(None, "Model that made a .npy table, for queries of words or sound.")
    target: Literal["audio", "text", "both"] = option("audio", "Search sounds, captions, or both.")
    lang: str | None = option(None, "Language of the queries, for towers that ask for it, ISO 639-1. [default: en]")
    k: int = option(10, "Hits per query.", flags=("-k",))
    min_score: float | None = option(None, "Drop hits below this cosine.")
    where: str | None = option(None, "Only items that satisfy this expression, for example \"split == 'test'\".")
    group_by: Literal["none", "file"] = option("none", "One hit per item of the table, or per file with its best spans.")
    fold: bool = option(False, "Fold items of the same sound into the best of them.")
    hybrid: bool = option(False, "Also rank by the words of names, labels and captions, and join both rankings.")
    index: str = option("exact", "exact, ivf, hnsw, lance:DIR, milvus:FILE.db or milvus+http://HOST:PORT/COLLECTION.")
    interactive: bool = option(False, "Ask for queries until the end of input; the model is loaded once.", identity=False)
    copy_to: Path | None = option(None, "Copy the sounds that were found into this folder.", identity=False)
    open: bool = option(False, "Open the best hit with the program of the desktop.", identity=False)
    playlist: Path | None = option(None, "Write the hits as a playlist (.m3u8).", identity=False)
    csv: Path | None = option(None, "Write the hits as a table (.csv).", identity=False)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(CommonConfig):
    """Options of ``clapkit eval``."""

    runs: tuple[str, ...] = option(
        (), "train runs, or models as for embed --model. [default: the newest train run]", argument=True
    )
    data: str | None = option(None, "prepare run or manifest. [default: the model's data]")
    split: str = option("test", "Split to evaluate.")
    tasks: str | None = option(
        None,
        "Comma-separated, or all. [default: geometry, multilingual, retrieval, zero-shot, as the data allow]",
        plugin="task",
    )
    prompt: tuple[str, ...] = option(
        ("This is a sound of {}.",), "Prompt template of zero-shot; repeatable: their embeddings are averaged."
    )
    prompt_set: str | None = option(
        None,
        "Named set of prompts, or a text file with one template a line, instead of --prompt; each is evaluated alone, too.",
    )
    classes: Path | None = option(
        None, "Text file with the classes of zero-shot, one a line, as label or label<TAB>text. [default: those of the data]"
    )
    relevance: Path | None = option(
        None, "CSV, TSV, JSONL or Parquet table with query, clip and (optional) grade: clips of captions as people judged them."
    )
    clean_captions: bool = option(False, "Lower-case captions and turn punctuation into blanks, as some models were trained.")
    probe_split: str = option("train", "Split on which the probe and its neighbours learn.")
    embeddings: str | None = option(
        None, "embed run of both modalities, or AUDIO.npy,TEXT.npy in the order of the clips and captions, instead of a model."
    )
    bootstrap: int = option(2000, "Draws of the bootstrap over clips; 0 turns intervals off.")
    baseline: str | None = option(None, "The run that the others are tested against. [default: the first]")
    headline: tuple[str, ...] = option(
        (), "Metric on which a claim rests; repeatable: Holm corrects for their number. [default: R@1 both ways, accuracy]"
    )
    strict: bool = option(False, "Refuse what would be marked: test clips seen, selection on the test split, clips missing.")
    submission: int | None = option(None, "Also write submission.csv: the best N files of every caption, best first.")
    report: bool = option(False, "Also write report.html and plots.")
    batch_size: int = option(32, "Windows (or sentences) in a batch; changes speed, not results.", identity=False)
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Autocast of the encoders.")
    workers: int | None = option(None, "Threads that load audio. [default: one per core]", identity=False)


CONFIGS: dict[str, type[CommonConfig]] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "embed": EmbedConfig,
    "retrieve": RetrieveConfig,
    "eval": EvalConfig,
}


def resolve(config_class: type[Config], given: Mapping[str, Any]) -> Config:
    """Put a configuration together: defaults, then the ``--config`` file, then explicit flags.

    Args:
        config_class: one of ``CONFIGS``.
        given: explicit flags; None means not given.

    Raises:
        ConfigError: if the file cannot be read or a value has the wrong type.
        UnknownNameError: if the file holds a key that is no option.
    """
    explicit = {key: value for key, value in given.items() if value is not None and value != ()}
    path = explicit.get("config")
    values = (read_config_file(Path(path), config_class) if path else {}) | explicit
    hints = typing.get_type_hints(config_class)
    config = config_class(**{key: _checked(key, value, hints[key]) for key, value in values.items()} | _root(values))
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"--seed {config.seed}: expected a whole number from 0 to {2**63 - 1}")
    return config


def _root(values: Mapping[str, Any]) -> dict[str, Path]:
    return {} if "runs_root" in values else {"runs_root": Path(CommonConfig.runs_root)}


def read_config_file(path: Path, config_class: type[CommonConfig]) -> dict[str, Any]:
    """Values of a TOML file or of an earlier ``run.json``.

    TOML keys are the long flags without dashes in front, with ``-`` or ``_``. Of a ``run.json`` the experiment is taken, not
    where it was written.

    Raises:
        ConfigError: if the file cannot be read.
        UnknownNameError: if a key is no option of the command.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            record = json.loads(text)
            step, content = record.get("step"), record["config"]
            if CONFIGS.get(step, config_class) is not config_class:
                wanted = next(name for name, known in CONFIGS.items() if known is config_class)
                raise ConfigError(f"--config {path}: is of a {step} run, expected one of {wanted}; name another")
            content = {
                k: v for k, v in content.items() if k not in fields or (fields[k].metadata["identity"] and v is not None)
            }
        else:
            content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error}); expected TOML or the run.json of a run") from error
    values = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise UnknownNameError(f"key in {path}:", key, fields)
        values[name] = value
    return values


def _checked(key: str, value: Any, hint: Any) -> Any:
    """Bring a value from a file to the type of its field."""
    members = typing.get_args(hint) if typing.get_origin(hint) is not Literal else ()
    kinds = [member for member in members if member is not type(None)] if type(None) in members else [hint]
    kind = kinds[0]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1)
            offer = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"--{key.replace('_', '-')} {value!r}: expected one of {', '.join(choices)}{offer}")
        return value
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"--{key.replace('_', '-')} {value}: expected a finite number")
        return float(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple | str):
        return tuple([value] if isinstance(value, str) else value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"--{key.replace('_', '-')} {value!r}: expected {expected}")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return value
