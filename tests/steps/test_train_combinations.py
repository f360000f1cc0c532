"""What of the objective family can be combined: it works from end to end, or it is refused with the reason."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from clapkit import registry
from clapkit.config import TrainConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ClapkitError, ConfigError, ManifestError, RunDirError, UnknownNameError
from clapkit.run_dir import RunDir
from clapkit.steps import train, train_drift
from clapkit.types import Caption, Reporter, SilentReporter

TINY: dict[str, Any] = {
    "audio_encoder": "tiny",
    "text_encoder": "tiny",
    "embedding_dim": 16,
    "batch_size": 4,
    "max_steps": 10,
    "eval_every": 100,
    "log_every": 1,
    "workers": 1,
}
SVR_MMTS = {"loss": "svr", "radius": "adaptive", "temperature": "mmts"}
WEIGHED = {"loss": "dbpm", "base": "svr", "temperature": "mmts", "options": ("warmup=0.2", "c1=0.5", "c2=0.5")}
TOLD = ("albef", "compa", "hycd")
"""Losses that look at more than the pairs, of which no drift is measured."""
COMBINATIONS: list[dict[str, Any]] = [
    *(
        {"loss": name} | ({"captions_per_clip": 2} if name == "alip" else {})
        for name in registry.names("loss")
        if name not in TOLD
    ),
    *({"temperature": "mmts", "loss": name} for name in ("infonce", "dcl", "decoupled", "cwcl", "reweighted")),
    {"temperature": "cosine", "options": ("unit=epoch", "oscillations=1")},
    SVR_MMTS,
    {"loss": "svr", "radius": "static", "temperature": "cosine"},
    {"loss": "triplet", "margin_schedule": "mmts", "options": ("reduction=mean",)},
    {"loss": "triplet", "margin_schedule": "cosine"},
    {"loss": "alip", "base": "reweighted", "captions_per_clip": 2, "options": ("targets=ot",)},
    WEIGHED,
    {"loss": "decoupled", "captions_per_clip": 2},
    {"loss": "cacr", "captions_per_clip": 2},
    {"loss": "mochi", "captions_per_clip": 2, "temperature": "mmts"},
    {"loss": "m3col", "options": ("mix_until=0.7", "mix_share=1.0")},
    {"loss": "sogclr", "captions_per_clip": 2, "options": ("individual=true",)},
    {"loss": "svr", "radius": "ratio", "freeze": "text"},
    {"loss": "svr", "radius": "adaptive", "captions_per_clip": 2, "sampler": "unique-caption"},
    {"loss": "siglip", "add": ("uniformity=0.1", "cyclip=0.5"), "options": ("cyclip.in_modal=false",)},
    {"sampler": "cluster", "num_clusters": 2},
    {"sampler": "mined", "mine_every": 1, "mine_neighbours": 2, "mine_filter": 1},
    {**SVR_MMTS, "sampler": "mined", "mine_every": 1, "features": "labels", "add": ("cross_uniformity=0.01",)},
]


def name_of(options: dict[str, Any]) -> str:
    return " ".join(str(value) for value in options.values())


def start(tmp_path: Path, manifest: Path, name: str, reporter: Reporter | None = None, **options: Any) -> RunDir:
    config = resolve(TrainConfig, TINY | {"data": str(manifest), "run_dir": tmp_path / name} | options)
    run_dir = RunDir.create(config.run_dir, step="train", config=config.resolved(), resume=config.resume)
    try:
        run_dir.finish(train.run(config, run_dir, reporter or SilentReporter()))
    except BaseException:
        run_dir.fail("failed")
        raise
    return run_dir


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank of two batches, no figures: neither is what is claimed here."""
    monkeypatch.setattr(train_drift, "BANK_PAIRS", 2 * TINY["batch_size"])
    monkeypatch.setattr(train, "plot_run", lambda run_dir: None)


def log_of(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def weights(run: RunDir) -> list[bytes]:
    last = run.checkpoint_dir / "last"
    return [(last / name).read_bytes() for name in ("model.safetensors", "objective.safetensors")]


# The last six have everything in them; the others are losses that tests/objectives holds to the same contract.
EVERY = [pytest.param(o, marks=() if o in COMBINATIONS[-6:] else pytest.mark.slow, id=name_of(o)) for o in COMBINATIONS]


@pytest.mark.parametrize("options", EVERY)
def test_it_trains_and_is_measured_without_a_trace(options: dict[str, Any], tones: Path, tmp_path: Path) -> None:
    whole = start(tmp_path, tones, "whole", **options)
    losses = [record["loss"] for record in log_of(whole) if "loss" in record]
    assert len(losses) == TINY["max_steps"]
    assert all(math.isfinite(loss) for loss in losses)
    measured = start(tmp_path, tones, "measured", diagnostics=6, **options)
    assert weights(measured) == weights(whole)
    drift = [record for record in log_of(measured) if "step_cos" in record]
    assert [record["step"] for record in drift] == [1, 6]
    assert all("infonce_force_cos_global" in record and "modality_gap" in record for record in drift)


# Losses whose next step depends on the steps before.
REMEMBERING = [options for options in COMBINATIONS if options.get("loss") in ("mochi", "m3col", "sogclr")]
RESUMED = [
    pytest.param(
        # The last of all is SVR_MMTS with more in it.
        options,
        marks=() if options in (COMBINATIONS[-1], WEIGHED) else pytest.mark.slow,
        id=name_of(options),
    )
    for options in COMBINATIONS[-6:] + [SVR_MMTS, WEIGHED] + REMEMBERING
]


def cut_and_resumed(tmp_path: Path, manifest: Path, *, at_step: int = 7, **options: Any) -> RunDir:
    """A run that went through; one of the same options that was cut and resumed had the same losses and weights."""
    whole = start(tmp_path, manifest, "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, manifest, "cut", _InterruptAt(at_step), **options)
    cut = start(tmp_path, manifest, "cut", resume=True, **options)
    assert weights(cut) == weights(whole)
    assert [record["loss"] for record in log_of(cut) if "loss" in record] == [
        record["loss"] for record in log_of(whole) if "loss" in record
    ]
    of_whole, of_cut = (json.loads((run.path / "result.json").read_text()) for run in (whole, cut))
    assert all(of_cut[name] == of_whole[name] for name in ("captions_cut", "captions_split"))
    return whole


@pytest.mark.parametrize("options", RESUMED)
def test_a_run_that_was_cut_resumes_to_the_same_weights(options: dict[str, Any], tones: Path, tmp_path: Path) -> None:
    # Ends in the middle of an epoch, after a search of the sampler that searches.
    cut_and_resumed(tmp_path, tones, **{"max_steps": 11, "save_every": 3} | options)


# What looks at more than the pairs: variants, teachers, languages, windows. Options, and what their log then has.
WIDER: list[tuple[dict[str, Any], set[str]]] = [
    (
        {
            "loss": "compa",
            "base": "svr",
            "true_variants": 1,
            "captions_per_clip": 2,
            "grad_cache_chunk": 3,
            "precision": "bf16",
        },
        {"hard", "parts", "false_share", "mean_rho"},
    ),
    (
        {"language_strategy": "all", "loss": "svr", "radius": "adaptive", "batch_size": 6, "grad_cache_chunk": 3},
        {"loss_de", "loss_en", "loss_fr", "mean_rho"},
    ),
    (
        {"loss": "hycd", "base": "svr", "accum_steps": 2, "options": ("rafa=0.1",)},
        {"distill_t2a", "rafa", "mean_rho", "teacher_positive_cosine"},
    ),
    (
        {"loss": "albef", "temperature": "mmts", "options": ("queue=8", "momentum=0.9", "oscillations=1")},
        {"queue_filled", "teacher_share"},
    ),
    (
        {"language_strategy": "anchor", "anchor_language": "de", "loss": "siglip", "add": ("cyclip=0.1",)},
        {"loss_audio_anchor", "loss_anchor_other", "added_cyclip"},
    ),
    ({"language_strategy": "sample", "loss": "compa", "sampler": "unique-caption"}, {"hard"}),
    ({"windows": 3, "fusion": "attention", "long_captions": "split", "grad_cache_chunk": 3}, {"t2a"}),
    ({"windows": 2, "fusion": "softmax", "loss": "siglip", "accum_steps": 2}, {"largest_window_weight"}),
    (
        {"windows": 2, "language_strategy": "all", "loss": "hycd", "batch_size": 6, "grad_cache_chunk": 3},
        {"loss_de", "distill_t2a"},
    ),
]
# The fast ones have variants, a teacher, features, languages, windows, chunks and accumulation between them.
FAST = (2, 5, 8)
EVERY_WIDER = [
    pytest.param(options, logged, marks=() if number in FAST else pytest.mark.slow, id=name_of(options))
    for number, (options, logged) in enumerate(WIDER)
]


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory, make_tones: Callable[..., Path]) -> Path:
    """Clips of two and a half windows; two captions of English, one of them long, and one of German and French each."""
    manifest = make_tones(tmp_path_factory.mktemp("stories"), train=12, val=4, test=1, duration_s=2.5)
    clips = []
    for number, clip in enumerate((data := Manifest.load(manifest)).clips):
        first, second = ("a dog barks", "rain falls")[:: 1 if number % 2 else -1]
        captions = (
            Caption(f"{first} {number} times, then {second}"),
            Caption(f"{first} while {second}" + " and a loud bell rings" * 20 + f" {number} times"),
            Caption(f"ein Hund bellt {number} Mal", lang="de"),
            Caption(f"un chien aboie {number} fois", lang="fr"),
        )
        clips.append(dataclasses.replace(clip, captions=captions))
    Manifest.write(manifest, clips, root=data.root, name="stories")
    return manifest


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to keep to."""
    folder = tmp_path_factory.mktemp("known")
    torch.manual_seed(0)
    DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": ["a dog barks, then rain falls"]}).save(folder)
    return folder


@pytest.mark.parametrize(("options", "logged"), EVERY_WIDER)
def test_what_looks_at_more_than_the_pairs_trains_and_resumes(
    options: dict[str, Any], logged: set[str], stories: Path, known: Path, tmp_path: Path
) -> None:
    options = {"max_steps": 4, "save_every": 2} | options | ({"init": str(known)} if options.get("loss") == "hycd" else {})
    run = cut_and_resumed(tmp_path, stories, at_step=3, **options)
    records = [record for record in log_of(run) if "loss" in record]
    assert len(records) == 4
    assert all(math.isfinite(record["loss"]) for record in records)
    assert logged <= records[-1].keys()
    result = json.loads((run.path / "result.json").read_text())
    assert (result["captions_split"] > 0) == ("long_captions" in options)


class _InterruptAt(SilentReporter):
    """Kills a run in its n-th step, between two checkpoints."""

    def __init__(self, step: int) -> None:
        self.step = step

    def track(self, description: str, total: int | None, unit: str = "") -> Any:
        tracking = super().track(description, total, unit)
        if description != "training":
            return tracking
        reporter = self

        class Counting:
            count = 0

            def __enter__(self) -> "Counting":
                return self

            def __exit__(self, *exc_info: object) -> None:
                return None

            def advance(self, amount: int = 1, **fields: str) -> None:
                Counting.count += amount
                if Counting.count == reporter.step:
                    raise KeyboardInterrupt

        return Counting()


REFUSED: list[tuple[dict[str, Any], type[ClapkitError], str]] = [
    ({"loss": "siglip", "temperature": "mmts"}, ConfigError, "one scale and one bias"),
    ({"loss": "svr", "base": "siglip", "temperature": "cosine"}, ConfigError, "one scale and one bias"),
    ({"loss": "reweighted", "base": "siglip", "temperature": "mmts"}, ConfigError, "one scale and one bias"),
    (
        {"loss": "triplet", "temperature": "mmts"},
        ConfigError,
        "--temperature does not apply to --loss triplet.*--margin-schedule",
    ),
    ({"temperature": "warm"}, UnknownNameError, "unknown --temperature 'warm'.*learnable, .*mmts"),
    ({"loss": "triplet", "margin_schedule": "wide"}, UnknownNameError, "unknown --margin-schedule 'wide'"),
    ({"loss": "triplet", "temperature": "fixed"}, ConfigError, "--temperature does not apply to --loss triplet"),
    ({"loss": "infonce", "margin_schedule": "mmts"}, ConfigError, "--margin-schedule does not apply.*triplet"),
    ({"loss": "infonce", "margin_schedule": "constant"}, ConfigError, "--margin-schedule does not apply.*triplet"),
    ({"loss": "triplet", "margin_schedule": "mmts", "margin": 0.3}, ConfigError, "--margin 0.3: the schedule gives it"),
    ({"temperature": "mmts", "tau": 0.1}, ConfigError, "--tau 0.1: the schedule gives it"),
    ({"temperature": "mmts", "options": ("amplitude=0.3",)}, ConfigError, "shift_min"),
    ({"temperature": "mmts", "options": ("cluster_sizes=3",)}, UnknownNameError, "cluster_sizes"),
    ({"loss": "svr", "options": ("batch_size=3",)}, UnknownNameError, "batch_size"),
    ({"clusters": "somewhere"}, ConfigError, "--clusters somewhere: nothing is clustered"),
    ({"num_clusters": 3}, ConfigError, "--num-clusters 3: nothing is clustered"),
    ({"features": "labels"}, ConfigError, "--features labels: nothing is computed"),
    ({"temperature": "mmts", "clusters": "a", "num_clusters": 3}, ConfigError, "--num-clusters 3: .*--clusters"),
    ({"temperature": "mmts", "clusters": "a", "features": "labels"}, ConfigError, "--features labels"),
    ({"temperature": "mmts", "num_clusters": 3, "features": "labels"}, ConfigError, "--num-clusters 3: --features labels"),
    ({"sampler": "mined", "mine_neighbours": -1}, ConfigError, "--mine-neighbours -1: expected 0 or more"),
    ({"temperature": "mmts", "clusters": "nowhere"}, RunDirError, "nowhere"),
    ({"temperature": "mmts", "features": "text"}, ConfigError, "untrained"),
    ({"loss": "cwcl", "features": "audio"}, ConfigError, "untrained"),
    ({"mine_every": 2}, ConfigError, "--mine-every 2: belongs to --sampler mined"),
    ({"sampler": "mined", "mine_filter": 0}, ConfigError, "--mine-filter 0"),
    ({"sampler": "cluster"}, ConfigError, "no cluster fills a batch"),
    ({"captions_per_clip": 3}, ConfigError, "--batch-size 4: is no multiple of the 3 captions"),
    ({"captions_per_clip": 0}, ConfigError, "--captions-per-clip 0"),
    ({"diagnostics": 0}, ConfigError, "--diagnostics 0"),
    ({"add": ("uniformity",)}, ConfigError, "NAME=WEIGHT"),
    ({"add": ("sparkle=1",)}, UnknownNameError, "sparkle"),
    ({"options": ("in_modal=false",)}, UnknownNameError, "in_modal"),
    ({"loss": "dbpm", "base": "siglip", "temperature": "cosine"}, ConfigError, "one scale and one bias"),
    ({"loss": "dbpm", "radius": "static"}, ConfigError, "--radius does not apply to --loss dbpm --base infonce"),
    (
        {"loss": "infonce", "base": "svr"},
        ConfigError,
        "--base does not apply.*alip or compa or dbpm or hycd or reweighted or svr",
    ),
    ({"loss": "svr", "base": "svr"}, ConfigError, "base=svr: expected one of infonce, siglip"),
    ({"loss": "alip"}, ConfigError, "--loss alip: .*pass --captions-per-clip 2"),
    ({"loss": "dbpm", "options": ("num_rows=3",)}, UnknownNameError, "num_rows"),
    ({"loss": "reweighted", "radius": "static"}, ConfigError, "--radius does not apply to --loss reweighted"),
    ({"loss": "compa", "base": "siglip", "temperature": "mmts"}, ConfigError, "one scale and one bias"),
    ({"loss": "compa", "diagnostics": 2}, ConfigError, "--diagnostics: the loss also looks at variants, and drift"),
    ({"loss": "albef", "diagnostics": 2}, ConfigError, "--diagnostics: the loss also looks at teacher, .*leave --diagnostics"),
    ({"windows": 2, "fusion": "softmax", "diagnostics": 2}, ConfigError, "--diagnostics: the loss also looks at windows"),
    ({"loss": "compa", "variants": "order,size"}, UnknownNameError, "unknown kind of variants 'size': known: attribute, given"),
    ({"loss": "albef", "options": ("embedding_dim=3",)}, UnknownNameError, "embedding_dim"),
    ({"language_strategy": "sample"}, ConfigError, r"--language-strategy sample: .* one language only \(en\)"),
    ({"loss": "hycd"}, ConfigError, "--loss hycd: keeps to what the model knew at its start.*--init"),
]
# Of a corpus in three languages.
REFUSED_OF_LANGUAGES: list[tuple[dict[str, Any], str]] = [
    ({"anchor_language": "es"}, "--anchor-language es: no caption is in it; pass one of de, en, fr"),
    ({"loss": "compa"}, "language strategy anchor: the loss also looks at variants of each sound"),
    ({"windows": 2, "fusion": "softmax"}, "language strategy anchor: the loss also looks at windows"),
    ({"loss": "sogclr"}, "language strategies all and anchor: sogclr keeps one normaliser"),
    ({"diagnostics": 2}, "--diagnostics: the loss also looks at language"),
    ({"batch_size": 3}, "--batch-size 3: is no multiple of the 2 captions that each clip brings by .* --language-strategy"),
]


@pytest.mark.parametrize(
    ("options", "error", "message"), REFUSED, ids=lambda value: name_of(value) if isinstance(value, dict) else None
)
def test_what_cannot_be_meant_is_refused_with_the_reason(
    options: dict[str, Any], error: type[ClapkitError], message: str, tones: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        start(tmp_path, tones, "run", **options)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock", "run.json"}


@pytest.mark.parametrize(("options", "message"), REFUSED_OF_LANGUAGES, ids=str)
def test_what_languages_cannot_be_combined_with_is_refused_with_the_reason(
    options: dict[str, Any], message: str, stories: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        start(tmp_path, stories, "run", language_strategy="anchor", **options)


def test_features_of_several_windows_are_refused(stories: Path, known: Path, tmp_path: Path) -> None:
    given = {"loss": "hycd", "init": str(known), "windows": 2, "options": ("rafa=0.5",)}
    with pytest.raises(ConfigError, match=r"--windows 2: .*before they have unit norm.*use --windows 1, or leave out -O rafa"):
        start(tmp_path, stories, "run", **given)


# What no data could make right.
REFUSED_AT_ONCE: list[tuple[dict[str, Any], str]] = [
    ({"loss": "compa", "diagnostics": 2}, "--diagnostics: the loss also looks at variants"),
    ({"language_strategy": "all", "diagnostics": 2}, "--diagnostics: the loss also looks at language"),
    ({"windows": 2, "fusion": "softmax", "diagnostics": 2}, "--diagnostics: the loss also looks at windows"),
    ({"language_strategy": "anchor", "loss": "compa"}, "language strategy anchor: the loss also looks at variants"),
    ({"language_strategy": "anchor", "windows": 2, "fusion": "softmax"}, "anchor: the loss also looks at windows"),
    ({"language_strategy": "all", "loss": "sogclr"}, "sogclr keeps one normaliser"),
    ({"language_strategy": "anchor", "batch_size": 3}, "--batch-size 3: is no multiple of the 2 captions"),
    ({"captions_per_clip": 4}, "--batch-size 4: a contrastive batch of 4 captions a clip needs negatives"),
    ({"loss": "hycd", "init": "known", "windows": 2, "options": ("rafa=0.5",)}, "--windows 2: .* leave out -O rafa"),
    ({"loss": "reweighted", "base": "svr"}, "base=svr: expected one of infonce, siglip"),
    ({"loss": "siglip", "options": ("targets=ot",)}, "targets=ot: expected one of ignore, soft"),
    ({"loss": "dbpm", "options": ("warmup=3",)}, "warmup=3.0: expected a share"),
    ({"tau": 7.0}, "tau=7.0"),
    ({"temperature": "mmts", "max_steps": 2}, "oscillations=5: a training of 2 steps"),
    ({"loss": "cwcl", "options": ("kernel=round",)}, "kernel"),
    ({"loss": "compa", "variants": "order,size"}, "unknown kind of variants 'size'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED_AT_ONCE, ids=str)
def test_what_no_data_could_make_right_is_refused_before_any_is_read(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ClapkitError, match=message):
        start(tmp_path, tmp_path / "not_looked_at.jsonl", "run", **options)


def test_a_start_that_fails_late_leaves_no_clusters(tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_tensorboard(*arguments: object, **named: object) -> None:
        raise ConfigError("--log-to tensorboard: not installed")

    monkeypatch.setattr(train, "event_log", no_tensorboard)
    with pytest.raises(ConfigError, match="not installed"):
        start(tmp_path, tones, "run", temperature="mmts", log_to="tensorboard")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "run.json"}


def test_a_resumed_run_keeps_its_clusters_whatever_became_of_the_file(tones: Path, tmp_path: Path) -> None:
    first = start(tmp_path, tones, "first", sampler="cluster", num_clusters=2, max_steps=1)
    given = (first.path / "clusters.parquet").rename(tmp_path / "given.parquet")
    options = {"sampler": "cluster", "clusters": str(given), "max_steps": 4, "save_every": 2}
    whole = start(tmp_path, tones, "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, tones, "cut", _InterruptAt(3), **options)
    given.unlink()
    assert weights(start(tmp_path, tones, "cut", resume=True, **options)) == weights(whole)


def test_the_adaptive_radius_and_several_captions_share_a_constant_batch(
    tone_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    run = start(tmp_path, tone_corpus(train=15), "run", loss="svr", captions_per_clip=2, max_steps=9)
    assert "mean_rho" in log_of(run)[1]


def test_drift_is_measured_where_a_batch_has_more_pairs_than_the_split_has_clips(
    tone_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"loss": "svr", "batch_size": 8, "captions_per_clip": 2, "diagnostics": 1, "max_steps": 1}
    run = start(tmp_path, tone_corpus(train=5), "run", **options)
    assert [record["step"] for record in log_of(run) if "force_cos_global" in record] == [1]


def test_clusters_are_kept_and_serve_another_run(tones: Path, tmp_path: Path) -> None:
    first = start(tmp_path, tones, "first", temperature="mmts", num_clusters=3)
    kept = pq.read_table(first.path / "clusters.parquet")
    assert kept.column_names == ["index", "id", "cluster", "size"]
    assert kept.num_rows == 16
    second = start(tmp_path, tones, "second", temperature="mmts", clusters=str(first.path / "clusters.parquet"))
    assert pq.read_table(second.path / "clusters.parquet").equals(kept)
    assert weights(first) == weights(second)


def test_the_temperature_follows_its_schedule_from_high_to_high(tones: Path, tmp_path: Path) -> None:
    # 8 steps, 2 oscillations: a period of 4 steps, cos = 1, 0, -1, 0; amplitude 0.08 and one shift for all, 0.1.
    options = ("amplitude=0.08", "shift_min=0.1", "shift_max=0.1", "oscillations=2")
    run = start(tmp_path, tones, "run", temperature="mmts", max_steps=8, options=options)
    logged = [record["temperature"] for record in log_of(run) if "loss" in record]
    assert logged == pytest.approx([0.14, 0.10, 0.06, 0.10] * 2)


def test_added_terms_are_logged_unweighted(tones: Path, tmp_path: Path) -> None:
    run = start(tmp_path, tones, "run", add=("alignment=0.5", "uniformity=2"))
    (record,) = (record for record in log_of(run) if record["step"] == 1 and "loss" in record)
    expected = (record["t2a"] + record["a2t"]) / 2 + 0.5 * record["added_alignment"] + 2 * record["added_uniformity"]
    assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_training_clip_without_a_label_stops_label_features(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    manifest = tone_corpus()
    manifest.write_text(manifest.read_text().replace('"labels": ["tone 0"], ', "", 1))
    with pytest.raises(ManifestError, match="label"):
        start(tmp_path, manifest, "run", temperature="mmts", features="labels")


def test_the_model_says_nothing_of_the_loss_that_trained_it(tones: Path, tmp_path: Path) -> None:
    """Whatever an objective learns or is told stays out of ``model/``, but for the one factor on all similarities."""
    plain = start(tmp_path, tones, "plain")
    names = safetensors.torch.load_file(plain.model_dir / "model.safetensors").keys()
    for number, options in enumerate(({**SVR_MMTS}, {"loss": "cwcl"}, {"loss": "siglip", "add": ("cyclip=1",)})):
        run = start(tmp_path, tones, str(number), **options)
        assert safetensors.torch.load_file(run.model_dir / "model.safetensors").keys() == names
        assert sorted(path.name for path in run.model_dir.iterdir()) == sorted(path.name for path in plain.model_dir.iterdir())
        of_plain, of_run = (json.loads((r.model_dir / "config.json").read_text()) for r in (plain, run))
        assert of_plain.pop("logit_scale") > 1
        assert (of_run.pop("logit_scale", None) is None) == (options.get("temperature") == "mmts")
        assert of_run == of_plain


def test_the_generators_of_torch_are_where_they_would_be_without_a_measurement(tones: Path, tmp_path: Path) -> None:
    states = []
    for name, options in (("plain", {}), ("measured", {"diagnostics": 1})):
        start(tmp_path, tones, name, text_encoder="small", max_steps=2, **options)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
