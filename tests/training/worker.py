"""What one of several processes does in a test; run as a script, with the environment that torchrun sets.

Every process saves what it has seen to ``<folder>/<scenario>-<rank>.pt``. The first one also does the same alone, with
``OneProcess``, to be compared with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clapkit import registry
from clapkit.errors import AudioError, ClapkitError, ConfigError, ShapeError
from clapkit.objectives.contract import needs_of
from clapkit.training.batch_norm import synchronise_batch_norm
from clapkit.training.distributed import OneProcess, Processes, join, leave, seed_process
from clapkit.training.loop import Interrupted, Plan, Trainer
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.training.teacher import Teacher
from clapkit.types import Batch, Context, LossOutput, SilentReporter

CLIPS, CAPTIONS_PER_CLIP, NUM_ROWS, FEATURES = 4, 2, 12, 6
LANGUAGES = ["de", "en", "fr"]
SHARED_CAPTION = 500
EXTRA = [
    ("infonce", {"targets": "soft"}),
    ("svr", {"radius": "static"}),
    ("svr", {"base": "siglip"}),
    ("infonce", {"schedule": "mmts"}),
    ("infonce", {"targets": "ot"}),
    ("svr", {"targets": "ot"}),
    ("alip", {"wrapped": "svr"}),
    ("mochi", {"start": 0.0}),
    ("m3col", {"mix_until": 0.0}),
    ("sogclr", {"individual": True}),
]


def forms() -> list[tuple[str, dict[str, Any]]]:
    """Every loss, and those that differ in what they need of the batch."""
    return [*((name, {}) for name in registry.names("loss")), *EXTRA]


def name_of(form: tuple[str, dict[str, Any]]) -> str:
    return " ".join([form[0], *(f"{key}={value}" for key, value in form[1].items())])


def objective_of(loss: str, options: Mapping[str, Any]) -> nn.Module:
    draw = torch.Generator().manual_seed(5)
    supplied = {
        "batch_size": CLIPS * CAPTIONS_PER_CLIP,
        "features": functional.normalize(torch.randn(NUM_ROWS, 5, generator=draw), dim=1),
        "side": "text",
        "num_rows": NUM_ROWS,
        "embedding_dim": 8,
    }
    if "schedule" in options:
        sizes = torch.arange(1, NUM_ROWS + 1)
        options = {"schedule": registry.build("schedule", options["schedule"], {"total_steps": 100, "cluster_sizes": sizes})}
    if "wrapped" in options:
        options = {**options, "wrapped": objective_of(options["wrapped"], {})}
    known = registry.defaults("loss", loss)
    return registry.build("loss", loss, {k: v for k, v in supplied.items() if k in known} | dict(options)).double()


class Encoder(nn.Module):
    """Six numbers to eight in float64, so that only rounding is forgiven; a caption looks up its row."""

    def __init__(self, *, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.audio, self.text = nn.Linear(FEATURES, 8), nn.Embedding(1000, 8)
        self.norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.rare = nn.Linear(8, 8)  # see skip_rare
        self.skip_rare = True
        self.double()

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        hidden = self.norm(self.audio(self.dropout(waveform)))
        return functional.normalize(hidden if self.skip_rare else hidden + self.rare(hidden), dim=1)

    def encode_text(self, captions: list[str]) -> Tensor:
        return functional.normalize(self.dropout(self.text(torch.tensor([int(caption) for caption in captions]))), dim=1)

    def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        return self.encode_audio(waveform, num_samples), self.encode_text(captions)


class Speaker(Encoder):
    """As the encoder, with a sound for every language, and embeddings before unit norm where they are asked for."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.tongue = nn.Embedding(len(LANGUAGES), 8).double()

    def encode_audio(self, waveform: Tensor, num_samples: Tensor, *, features: bool = False) -> Tensor:
        embedded: Tensor = self.norm(self.audio(self.dropout(waveform)))
        return embedded if features else functional.normalize(embedded, dim=1)

    def encode_text(self, captions: Sequence[str], languages: Sequence[str], *, features: bool = False) -> Tensor:
        tongues = self.tongue(torch.tensor([LANGUAGES.index(tag) for tag in languages]))
        embedded = self.dropout(self.text(torch.tensor([int(caption) for caption in captions]))) + tongues
        return embedded if features else functional.normalize(embedded, dim=1)

    def forward(
        self, waveform: Tensor, num_samples: Tensor, captions: list[str], languages: list[str], *, features: bool = False
    ) -> tuple[Tensor, Tensor]:
        audio = self.encode_audio(waveform, num_samples, features=features)
        return audio, self.encode_text(captions, languages, features=features)


class Told(nn.Module):
    """A loss that depends on all that it needs, so that whatever goes wrong with it shows in a gradient.

    Args:
        needs: what it asks for.
        momentum: of its teacher.
    """

    def __init__(self, needs: frozenset[Any], momentum: float | None) -> None:
        super().__init__()
        if needs:
            self.needs = needs
        self.teacher_momentum = momentum
        self.looks = True
        self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        similarity = text @ audio.T
        terms = {"pairs": nn.functional.cross_entropy(self.scale * similarity, torch.arange(len(text)))}
        if context is not None and self.looks:
            terms |= self._of_context(context, similarity, audio, index)
        return LossOutput(sum(terms.values()), {name: float(term.detach()) for name, term in terms.items()}, {})  # type: ignore[arg-type]

    def _of_context(self, context: Context, similarity: Tensor, audio: Tensor, index: Tensor) -> dict[str, Tensor]:
        terms = {}
        if "language" in self.needs:
            assert context.language is not None
            terms["language"] = (similarity * (context.language[:, None] == context.language)).mean()
        if "variants" in self.needs:
            assert context.variants is not None
            assert context.variant_truth is not None
            cosines = (context.variants * audio[:, None]).sum(dim=2)  # [B, V]
            terms["variants"] = -(cosines * context.variant_truth).sin().sum()
        if "teacher" in self.needs:
            assert context.teacher_audio is not None
            assert context.teacher_text is not None
            terms["teacher"] = -(similarity * (context.teacher_text @ context.teacher_audio.T)).mean()
        if "features" in self.needs:
            assert context.audio_features is not None
            assert context.text_features is not None
            lengths = context.audio_features.norm(dim=1) * context.text_features.norm(dim=1)
            terms["features"] = (lengths * (index + 1)).mean()
        return terms

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"name": "scale", "params": [self.scale], "lr": lr, "weight_decay": 0.0}]

    def after_step(self) -> None:
        pass


class Batches:
    """The part of one of several processes: its share of the clips, with all their captions.

    The first and the last clip of a batch have a caption in common, so that there are positives across the processes.

    Args:
        processes: that share the batches.
        speaks: whether captions have languages, and two variants each, some of which are true, also of other clips, some false
            and some missing.
    """

    batches_per_epoch = 3

    def __init__(self, processes: Processes, *, speaks: bool = False) -> None:
        self.rank, self.size, self.speaks = processes.rank, processes.size, speaks

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        order = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(100 + epoch)).view(3, CLIPS)
        sounds = torch.randn(NUM_ROWS, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        share = CLIPS // self.size
        for number in range(first, 3):
            rows = order[number]
            mine = slice(self.rank * share, (self.rank + 1) * share)
            batch = self._batch(rows, mine, sounds)
            yield _spoken(batch) if self.speaks else batch

    def _batch(self, rows: Tensor, mine: slice, sounds: Tensor) -> Batch:
        own = rows[mine]
        captions, text_keys, clip_keys = [], [], []
        for row in own.tolist():
            names = [SHARED_CAPTION if row in (int(rows[0]), int(rows[-1])) else 2 * row + 100, 2 * row + 101]
            captions += [str(name) for name in names]
            text_keys += [[row + 1, name] for name in names]
            # Only clips of the first process have a third key: the tables are not equally wide.
            clip_keys += [[row + 1, *names] + ([700] if mine.start == 0 else [])] * 2
        audio_row = torch.arange(len(own)).repeat_interleave(2)
        return Batch(
            waveform=sounds[own],
            num_samples=torch.full((len(own),), FEATURES),
            captions=captions,
            index=own[audio_row],
            text_keys=torch.tensor(text_keys),
            clip_keys=torch.tensor(clip_keys),
            audio_row=audio_row,
        )


def _spoken(batch: Batch) -> Batch:
    """The same batch with languages and variants."""
    rows, which = batch.index, torch.arange(len(batch.index)) % CAPTIONS_PER_CLIP
    place = (CAPTIONS_PER_CLIP * rows + which)[:, None] * 2 + torch.arange(2)  # [B, V], of all variants there are
    truth = (place % 3 - 1).to(torch.int8)
    return replace(
        batch,
        languages=[LANGUAGES[number] for number in (rows + which).remainder(len(LANGUAGES)).tolist()],
        variants=[str(600 + number) for number in place.flatten().tolist()],
        variant_truth=truth,
        sentence_keys=torch.cat([batch.text_keys[:, 1:], (truth == 1) * _part_keys(place)], dim=1),
        true_keys=_true_keys(batch),
    )


def _part_keys(place: Tensor) -> Tensor:
    """Keys of variants, of which several clips have the same."""
    return 900 + place // 3 % 5


def _true_keys(batch: Batch) -> Tensor:
    """All captions of a clip with their true variants; the tables of two processes are not equally wide."""
    all_places = batch.index[:, None] * CAPTIONS_PER_CLIP * 2 + torch.arange(CAPTIONS_PER_CLIP * 2)  # [B, 4]
    return torch.cat([batch.clip_keys[:, 1:], (all_places % 3 == 2) * _part_keys(all_places)], dim=1)


def told(
    processes: Processes,
    folder: Path,
    *,
    needs: frozenset[Any],
    momentum: float | None = 0.75,
    dropout: float = 0.0,
    **plan: Any,
) -> Trainer:
    """As ``trainer``, with a loss that looks at what it is told."""
    torch.manual_seed(0)
    return _assembled(processes, folder, Speaker(dropout=dropout), Told(needs, momentum), speaks=True, **plan)


def trainer(
    processes: Processes,
    folder: Path,
    *,
    form: tuple[str, dict[str, Any]] = ("svr", {}),
    encoder: Encoder | None = None,
    **plan: Any,
) -> Trainer:
    """A run of one step, unless the plan says otherwise, with gradients as they are."""
    torch.manual_seed(0)
    objective = objective_of(*form)
    speaks = bool(needs_of(objective))
    if encoder is None or (speaks and type(encoder) is Encoder):
        torch.manual_seed(0)
        encoder = Speaker() if speaks else Encoder()
    return _assembled(processes, folder, encoder, objective, speaks=speaks, **plan)


def _assembled(
    processes: Processes, folder: Path, encoder: Encoder, objective: nn.Module, *, speaks: bool, **plan: Any
) -> Trainer:
    synchronise_batch_norm(encoder, processes)
    needs = needs_of(objective)
    teacher = Teacher(encoder, momentum=objective.teacher_momentum) if "teacher" in needs else None  # type: ignore[arg-type]
    groups = parameter_groups(encoder, lr=0.05, weight_decay=0.01) + objective.param_groups(0.05, 0.0)  # type: ignore[operator]
    common: dict[str, Any] = {
        **{"total_steps": 1, "warmup_steps": 0, "schedule": "constant", "clip_grad": 0.0, "precision": "fp32"},
        **{"eval_every": 100, "save_every": None, "log_every": 1, "keep_best": "x", "lower_is_better": False, "patience": None},
    }
    return Trainer(
        encoder,
        objective,
        optimizer=build_optimizer(groups),
        batches=Batches(processes, speaks=speaks),
        plan=Plan(**common | plan),
        device=torch.device("cpu"),
        checkpoint_dir=folder,
        processes=processes,
        needs=needs,
        teacher=teacher,
    )


def fit(run: Trainer, **options: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    with SilentReporter().track("", None) as tracker:
        run.fit(
            validate=lambda: {"x": 0.5},
            log=lambda record: records.append(dict(record)),
            tracker=tracker,
            on_best=lambda: records.append({"best": run.progress.step}),
            **options,
        )
    return records


def gradients(run: Trainer) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": p.grad
        for part in ("encoder", "objective")
        for name, p in getattr(run, part).named_parameters()
        if p.grad is not None
    }


def weights(run: Trainer) -> dict[str, Tensor]:
    return {f"{part}.{k}": v.clone() for part in ("encoder", "objective") for k, v in getattr(run, part).state_dict().items()}


def seen_of(run: Trainer) -> dict[str, Any]:
    """What a run leaves behind; the records are there on the first process only."""
    numbers = [{k: v for k, v in r.items() if k not in ("clips_per_s", "data_wait_share")} for r in fit(run)]
    return {"records": numbers, "gradients": gradients(run), "weights": weights(run)}


def also_alone(processes: Processes, do: Callable[[Processes], Any]) -> dict[str, Any]:
    return {"together": do(processes), "alone": do(OneProcess()) if processes.is_first else None}


# Scenarios: (processes, folder) -> what is saved --------------------------------------------------------------------------


def exchange(processes: Processes, folder: Path) -> dict[str, Any]:
    """The collectives by themselves."""
    rank = processes.rank
    summed = [torch.full((3,), float(rank + 1)), torch.tensor([[rank]]), torch.full((2, 2), rank + 1.0, dtype=torch.bfloat16)]
    processes.sum_(summed)
    averaged = torch.tensor([2.0 * rank])
    processes.mean_([averaged])
    copied = [torch.tensor([rank, 7]), torch.tensor([rank == 0]), torch.tensor(rank + 0.5, dtype=torch.float16)]
    processes.copy_(copied)
    leaf = torch.full((2, 1), float(rank), requires_grad=True)
    try:
        processes.gather(torch.zeros(2 + rank, 3))
        ragged = None
    except ShapeError as error:
        ragged = str(error)
    return {
        "who": (rank, processes.size, processes.is_first),
        "gathered": processes.gather(leaf),
        "gathered_half": processes.gather(torch.tensor([rank + 0.5], dtype=torch.bfloat16)),
        "gathered_flags": processes.gather(torch.tensor([rank == 1])),
        "ragged": ragged,
        "summed": summed,
        "averaged": averaged,
        "copied": copied,
        "broadcast": processes.broadcast({"from": rank}),
        "values": processes.gather_values({"rank": rank}),
        "any": (processes.any(rank == 1), processes.any(False)),
    }


def losses(processes: Processes, folder: Path) -> dict[str, Any]:
    """One step under every loss."""
    return {
        name_of(form): also_alone(processes, lambda who, form=form: seen_of(trainer(who, folder, form=form)))  # type: ignore[misc]
        for form in forms()
    }


def detached(processes: Processes, folder: Path) -> dict[str, Any]:
    """The usual mistake: others' embeddings as constants, and gradients that are averaged."""
    run = trainer(processes, folder, form=("infonce", {}))
    batch = next(run.batches.epoch(0))
    audio, text = run.encoder(batch.waveform, batch.num_samples, batch.captions)
    audio = audio[batch.audio_row]
    whole = []
    for own in (audio, text):
        parts = list(processes.gather(own).chunk(processes.size))
        parts[processes.rank] = own
        whole.append(torch.cat(parts))
    identity = torch.eye(len(whole[0]), dtype=torch.bool)
    run.objective(*whole, identity, processes.gather(batch.index), 0.0).total.backward()
    naive = [p.grad for p in run.encoder.parameters() if p.grad is not None]
    processes.mean_(naive)
    alone = trainer(OneProcess(), folder, form=("infonce", {}))
    batch = next(alone.batches.epoch(0))
    audio, text = alone.encoder(batch.waveform, batch.num_samples, batch.captions)
    alone.objective(audio[batch.audio_row], text, identity, batch.index, 0.0).total.backward()
    return {"naive": naive, "whole": [p.grad for p in alone.encoder.parameters() if p.grad is not None]}


def combined(processes: Processes, folder: Path) -> dict[str, Any]:
    """Chunks, accumulation and batch norm, each on several processes."""

    def steps(who: Processes, *, batch_norm: bool = False, **plan: Any) -> dict[str, Any]:
        torch.manual_seed(1)
        return seen_of(trainer(who, folder, encoder=Encoder(batch_norm=batch_norm), **plan))

    def weighed(who: Processes, **plan: Any) -> dict[str, Any]:
        """Steps that depend on what the ones before have left in the memory of the loss."""
        form = ("dbpm", {"wrapped": "svr", "warmup": 0.0, "c1": 0.5, "c2": 0.5})
        return seen_of(trainer(who, folder, form=form, total_steps=3, **plan))

    def parts(who: Processes, **plan: Any) -> dict[str, Any]:
        """Sentences that are true of clips of other processes too."""
        return seen_of(trainer(who, folder, form=("compa", {}), **plan))

    return {
        "chunks": also_alone(processes, lambda who: steps(who, grad_cache_chunk=1)),
        "whole": also_alone(processes, steps),
        "accumulated": also_alone(processes, lambda who: steps(who, accum_steps=2, total_steps=3)),
        "batch norm": also_alone(processes, lambda who: steps(who, batch_norm=True, total_steps=4)),
        "clipped": also_alone(processes, lambda who: steps(who, clip_grad=1e-3, total_steps=3)),
        "fp16": also_alone(processes, lambda who: steps(who, precision="fp16", total_steps=3)),
        "parts in chunks": also_alone(processes, lambda who: parts(who, grad_cache_chunk=1)),
        "parts": also_alone(processes, parts),
        "weighed": also_alone(processes, weighed),
        "weighed in chunks": also_alone(processes, lambda who: weighed(who, grad_cache_chunk=1)),
        "weighed and accumulated": also_alone(processes, lambda who: weighed(who, accum_steps=2)),
    }


def normalised(processes: Processes, folder: Path) -> dict[str, Any]:
    """Batch norms by themselves, on parts of different sizes."""
    found = {}
    for kind, shape in ((nn.BatchNorm1d, (5, 3)), (nn.BatchNorm2d, (5, 3, 4, 2))):
        for momentum in (0.1, None):
            for affine in (True, False):
                key = f"{kind.__name__} {momentum} {affine}"
                found[key] = _normalised(processes, kind(3, momentum=momentum, affine=affine), shape)
    return found


def _normalised(processes: Processes, norm: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    whole = 100 + torch.randn(shape, generator=draw, dtype=torch.float64)  # a mean that drowns a careless variance
    weight = torch.randn(shape, generator=draw, dtype=torch.float64)
    norm.double()
    if norm.affine:
        torch.nn.init.uniform_(norm.weight, generator=draw)
    names = list(norm.state_dict())
    rows = slice(None)
    if processes.size > 1:
        synchronise_batch_norm(norm, processes)
        rows = slice(0, 2) if processes.is_first else slice(2, 5)
    x = whole[rows].clone().requires_grad_()
    for _ in range(2):
        norm.zero_grad()
        x.grad = None
        y = norm(x)
        (y.sin() * weight[rows]).sum().backward()
    own = [p.grad for p in norm.parameters()]
    processes.sum_(own)
    state = norm.state_dict()
    assert list(state) == names
    result = {
        "output": y.detach(),
        "input gradient": x.grad,
        "gradients": own,
        "state": {k: v.clone() for k, v in state.items()},
    }
    result["evaluated"] = norm.eval()(x).detach()
    if processes.size > 1 and processes.is_first:
        alone = type(norm).__mro__[2](3, momentum=norm.momentum, affine=norm.affine)
        result["alone"] = _normalised(OneProcess(), alone, shape)
    return result


def together(processes: Processes, folder: Path) -> dict[str, Any]:
    """What processes have to agree on: start, drawing, stopping, checkpoints."""
    apart = trainer(processes, folder)
    with torch.no_grad():
        apart.encoder.audio.weight.add_(processes.rank)
    fit(apart)
    rarely = trainer(processes, folder)
    rarely.encoder.skip_rare = processes.rank != 1
    fit(rarely)

    def dropping(name: str) -> Trainer:
        torch.manual_seed(0)
        run = trainer(processes, folder / name, encoder=Encoder(dropout=0.3), total_steps=7)
        seed_process(0, processes.rank)
        return run

    whole = dropping("whole")
    drawn = torch.rand(1, generator=torch.Generator().set_state(torch.get_rng_state()))
    fit(whole)
    stopped = dropping("stopped")
    writes = []
    write, stopped._write = stopped._write, lambda *given: (writes.append(stopped.progress.step), write(*given))  # type: ignore[method-assign, assignment, func-returns-value]
    try:
        # Only the last process is asked to stop.
        fit(stopped, should_stop=lambda: processes.rank == processes.size - 1 and stopped.progress.step == 4)
        is_interrupted = False
    except Interrupted:
        is_interrupted = True
    resumed = dropping("resumed")
    resumed.resume(folder / "stopped" / "last")
    fit(resumed)
    measured = trainer(processes, folder, diagnostics_every=1)
    measured.diagnostics = object()  # type: ignore[assignment]
    try:
        fit(measured)
        refused = None
    except ConfigError as error:
        refused = str(error)
    return {
        "apart": weights(apart),
        "rare": rarely.encoder.rare.weight.grad,
        "drawn": drawn,
        "whole": weights(whole),
        "resumed": weights(resumed),
        "interrupted": (is_interrupted, stopped.progress.step, writes),
        "refused": refused,
    }


def resume_of_two(processes: Processes, folder: Path) -> dict[str, Any]:
    """Go on with the checkpoint of ``together`` on another number of processes."""
    drawn = []
    for _ in range(2):
        run = trainer(processes, folder / f"{processes.size}", encoder=Encoder(dropout=0.3), total_steps=7)
        run.resume(folder / "two" / "last", seed=3)
        drawn.append(torch.rand(2, generator=torch.Generator().set_state(torch.get_rng_state())))
    before = run.progress.step
    fit(run)
    return {"drawn": drawn, "before": before, "after": run.progress.step, "weights": weights(run)}


def left_alone(processes: Processes, folder: Path) -> dict[str, Any]:
    """The last process cannot go on in the middle of a run: it parts, and the others hear of it."""
    run = trainer(processes, folder, encoder=Encoder(batch_norm=True), total_steps=3)
    if processes.rank == processes.size - 1:
        run.batches.epoch = _damaged  # type: ignore[method-assign]
    try:
        fit(run)
    except ClapkitError as error:
        leave()
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": None}


def _damaged(epoch: int, *, first: int = 0) -> Iterator[Batch]:
    raise AudioError("one.wav: is empty")
    yield


def told_together(processes: Processes, folder: Path) -> dict[str, Any]:
    """Steps of a loss that is told of languages, variants, a teacher and features."""
    everything: frozenset[str] = frozenset({"language", "variants", "teacher", "features"})

    def steps(who: Processes, needs: frozenset[str] = everything, **plan: Any) -> dict[str, Any]:
        run = told(who, folder, needs=needs, **{"total_steps": 3, **plan})
        return with_teacher(run)

    def with_teacher(run: Trainer) -> dict[str, Any]:
        seen = seen_of(run)
        return {**seen, "teacher": {} if run.teacher is None else dict(run.teacher.encoder.state_dict())}

    def of_loss(who: Processes, *form: Any) -> dict[str, Any]:
        return with_teacher(trainer(who, folder, form=form, total_steps=3))  # type: ignore[arg-type]

    return {
        "whole": also_alone(processes, steps),
        "chunks": also_alone(processes, lambda who: steps(who, grad_cache_chunk=1)),
        "accumulated": also_alone(processes, lambda who: steps(who, accum_steps=2, total_steps=2)),
        "no teacher": also_alone(processes, lambda who: steps(who, everything - {"teacher"})),
        "queue": also_alone(processes, lambda who: of_loss(who, "albef", {"queue": 10, "ramp": 0.0, "momentum": 0.75})),
        "alignment": also_alone(processes, lambda who: of_loss(who, "hycd", {"wrapped": "svr", "rafa": 0.5})),
    }


SCENARIOS = (exchange, losses, detached, combined, normalised, together, resume_of_two, left_alone, told_together)


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    processes = join("cpu")
    for scenario in SCENARIOS:
        if scenario.__name__ in names:
            torch.save(scenario(processes, folder), folder / f"{scenario.__name__}-{processes.rank}.pt")
    if "left_alone" not in names:
        processes.barrier()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
