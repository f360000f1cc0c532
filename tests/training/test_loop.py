import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clapkit import registry
from clapkit.errors import ConfigError, NumericalError
from clapkit.training.checkpoint import generator_state
from clapkit.training.distributed import OneProcess
from clapkit.training.loop import Interrupted, Plan, Trainer, mean_output
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.types import Batch, LossOutput, SilentReporter

Seen = dict[str, list[dict[str, Any]]]
PLAN = Plan(
    total_steps=8,
    warmup_steps=2,
    schedule="cosine",
    clip_grad=1.0,
    precision="fp32",
    eval_every=3,
    save_every=None,
    log_every=1,
    keep_best="t2a_R@1",
    lower_is_better=False,
    patience=None,
)


class Pairs(nn.Module):
    """An encoder of eight features: audio is the waveform, text looks up its row."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.text = nn.Linear(8, 4), nn.Embedding(12, 4)
        self.dropout = nn.Dropout(0.2)

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        return nn.functional.normalize(self.audio(self.dropout(waveform)), dim=1)

    def encode_text(self, captions: list[str]) -> Tensor:
        return nn.functional.normalize(self.text(torch.tensor([int(caption) for caption in captions])), dim=1)

    def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        return self.encode_audio(waveform, num_samples), self.encode_text(captions)


class Batches:
    batches_per_epoch = 3

    def __init__(self, *, poison: int | None = None, captions_per_clip: int = 1) -> None:
        self.poison, self.captions_per_clip = poison, captions_per_clip
        self.shift: int | None = None

    def state_dict(self) -> dict[str, int | None]:
        return {"shift": self.shift}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        self.shift = state["shift"]

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(100 + epoch)
        rows = torch.randperm(12, generator=generator).view(3, 4)
        features = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
        for number in range(first, 3):
            waveform = features[rows[number]]
            if self.poison == epoch * 3 + number:
                waveform = waveform * float("nan")
            keys = rows[number][:, None] + 1
            captions = [str(int(row)) for row in rows[number]]
            yield self._repeated(Batch(waveform, torch.full((4,), 8), captions, rows[number], keys, keys, torch.arange(4)))

    def _repeated(self, batch: Batch) -> Batch:
        """Every clip as often as it has captions; its waveform once."""
        row = torch.arange(4).repeat_interleave(self.captions_per_clip)
        captions = [batch.captions[i] for i in row]
        keys = batch.text_keys[row]
        return Batch(batch.waveform, batch.num_samples, captions, batch.index[row], keys, keys, row)


def trainer(tmp_path: Path, *, plan: Plan = PLAN, poison: int | None = None, loss: str = "svr") -> Trainer:
    torch.manual_seed(0)
    encoder = Pairs()
    options = {"radius": "adaptive", "batch_size": 4} if loss == "svr" else {}
    objective = registry.build("loss", loss, options)
    groups = parameter_groups(encoder, lr=0.05, weight_decay=0.0) + objective.param_groups(0.05, 0.0)
    return Trainer(
        encoder,
        objective,
        optimizer=build_optimizer(groups),
        batches=Batches(poison=poison),
        plan=plan,
        device=torch.device("cpu"),
        checkpoint_dir=tmp_path,
    )


def fit(run: Trainer, *, values: Callable[[int], float] = lambda step: step / 100, **options: Any) -> list[Mapping[str, Any]]:
    records: list[Mapping[str, Any]] = []
    with SilentReporter().track("", None) as tracker:
        run.fit(
            validate=lambda: {"t2a_R@1": values(run.progress.step)},
            log=records.append,
            tracker=tracker,
            on_best=options.pop("on_best", lambda: None),
            **options,
        )
    return records


def weights(run: Trainer) -> dict[str, Tensor]:
    return {f"{m}.{k}": v for m in ("encoder", "objective") for k, v in getattr(run, m).state_dict().items()}


def equal(a: Trainer, b: Trainer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def test_every_step_is_logged_and_whole_splits_are_validated(tmp_path: Path) -> None:
    records = fit(trainer(tmp_path))
    assert [r["step"] for r in records if "t2a_R@1" in r] == [0, 3, 6, 8]
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 9))
    for key in ("epoch", "loss", "lr", "clips_per_s", "data_wait_share", "gradient_norm", "mean_radius", "temperature"):
        assert all(key in r for r in steps), key
    assert steps[0]["lr"] == pytest.approx(0.025)  # first of two warm-up steps


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    records = fit(trainer(tmp_path, plan=replace(PLAN, total_steps=60, eval_every=60), loss="infonce"))
    losses = [r["loss"] for r in records if "loss" in r]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_resume_continues_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = trainer(tmp_path / "whole")
    expected = fit(whole)
    broken = trainer(tmp_path / "broken")
    with pytest.raises(Interrupted):
        fit(broken, should_stop=lambda: broken.progress.step == stop_at)
    resumed = trainer(tmp_path / "broken")
    torch.rand(5)  # other draws in between must not matter
    resumed.resume(tmp_path / "broken" / "last")
    assert resumed.progress.step == stop_at
    records = fit(resumed)
    assert equal(whole, resumed)
    last = [r for r in expected if "loss" in r][-1]
    assert [r for r in records if "loss" in r][-1]["loss"] == last["loss"]


class Drawn(Batches):
    """Batches that depend on a number drawn in the first epoch, as mined ones do on the model of that time."""

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        if self.shift is None:
            self.shift = int(torch.randint(1000, ()))
        return super().epoch(epoch + self.shift, first=first)


def test_resume_restores_what_the_batches_depend_on(tmp_path: Path) -> None:
    def drawn(folder: str) -> Trainer:
        run = trainer(tmp_path / folder, loss="infonce")
        run.batches = Drawn()
        return run

    whole = drawn("whole")
    fit(whole)
    broken = drawn("broken")
    with pytest.raises(Interrupted):
        fit(broken, should_stop=lambda: broken.progress.step == 4)
    resumed = drawn("broken")
    resumed.resume(tmp_path / "broken" / "last")
    assert resumed.batches.state_dict() == whole.batches.state_dict() != {"shift": None}
    fit(resumed)
    assert equal(whole, resumed)


def test_a_clip_with_several_captions_is_encoded_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, loss="infonce")
    run.batches = Batches(captions_per_clip=2)
    encoded, scored = [], []
    run.encoder.register_forward_hook(lambda module, given, made: encoded.append(tuple(map(len, made))))
    run.objective.register_forward_pre_hook(lambda module, given: scored.append(given))
    fit(run)
    assert set(encoded) == {(4, 8)}
    audio, text, positives, index, _ = scored[0]
    assert audio.shape == text.shape == (8, 4)
    assert torch.equal(audio[0::2], audio[1::2])  # the pairs of a clip hear one embedding
    assert torch.equal(positives, index[:, None] == index)


def test_a_loss_that_is_not_finite_names_the_step_and_the_terms(tmp_path: Path) -> None:
    run = trainer(tmp_path, poison=4)
    with pytest.raises(NumericalError, match=r"step 5: loss is nan \(.*t2a.*\); lower --lr"):
        fit(run)
    assert (tmp_path / "last" / "state.pt").exists()
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())


def test_the_best_weights_are_reported_and_later_ones_win_ties(tmp_path: Path) -> None:
    best: list[int] = []
    run = trainer(tmp_path)
    values = {0: 0.9, 3: 0.5, 6: 0.5, 8: 0.4}
    fit(run, values=values.__getitem__, on_best=lambda: best.append(run.progress.step))
    assert best == [3, 6]  # never the untrained weights
    assert run.progress.best_step == 6
    assert run.progress.best_metrics == {"t2a_R@1": 0.5}


def test_a_rank_is_better_when_it_is_lower(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, lower_is_better=True))
    fit(run, values={0: 9.0, 3: 2.0, 6: 4.0, 8: 3.0}.__getitem__)
    assert run.progress.best_step == 3


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, total_steps=30, patience=2))
    fit(run, values=lambda step: 0.3)
    assert run.progress.step == 9  # best at 3, no better at 6 and 9


def test_gradients_are_clipped(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, clip_grad=1e-3), loss="infonce")
    records = fit(run)
    assert max(r["gradient_norm"] for r in records if "loss" in r) > 1e-3
    norm = torch.stack([p.grad.norm() for p in [*run.encoder.parameters(), *run.objective.parameters()] if p.grad is not None])
    assert norm.norm() <= 1.01e-3


def test_an_fp16_step_that_overflows_is_skipped_and_logs_no_gradient_norm(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, precision="fp16", total_steps=1))
    # The largest gradient that float16 holds is 65504: any is beyond it at this scale.
    run.scaler = torch.amp.grad_scaler.GradScaler("cpu", init_scale=2.0**120)
    before = {name: value.clone() for name, value in weights(run).items()}
    (record,) = (r for r in fit(run) if "loss" in r)
    assert record["gradient_norm"] is None
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())
    assert run.scaler.get_scale() < 2.0**120


def test_bf16_autocast_trains_on_cpu(tmp_path: Path) -> None:
    records = fit(trainer(tmp_path, plan=replace(PLAN, precision="bf16")))
    assert all(abs(r["loss"]) < 100 for r in records if "loss" in r)


# Several batches in a step ----------------------------------------------------------------------------------------------


def unclipped(steps: int, **plan: Any) -> Plan:
    return replace(PLAN, total_steps=steps, warmup_steps=0, clip_grad=0.0, **plan)


def gradients(run: Trainer) -> list[Tensor]:
    return [p.grad for p in [*run.encoder.parameters(), *run.objective.parameters()] if p.grad is not None]


class From(Batches):
    """Starts with a later batch of the epoch."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        return super().epoch(epoch, first=first + self.start)


def test_two_batches_of_a_step_have_the_mean_of_their_gradients_and_numbers(tmp_path: Path) -> None:
    def of_step(batches: Batches, accum_steps: int) -> tuple[list[Tensor], Mapping[str, Any]]:
        run = trainer(tmp_path, plan=unclipped(1, accum_steps=accum_steps))
        run.encoder.dropout.p = 0.0
        run.batches = batches
        record = next(r for r in fit(run) if "loss" in r)
        return gradients(run), record

    both, record = of_step(Batches(), 2)
    parts = [of_step(From(start), 1) for start in (0, 1)]
    for gradient, first, second in zip(both, parts[0][0], parts[1][0], strict=True):
        torch.testing.assert_close(gradient, (first + second) / 2, rtol=1e-5, atol=1e-7)
    for name in ("loss", "t2a", "a2t", "positive_cosine", "mean_radius"):
        assert record[name] == pytest.approx((parts[0][1][name] + parts[1][1][name]) / 2, rel=1e-6), name


class Counted(Batches):
    """Five batches an epoch, and which of them were asked for."""

    batches_per_epoch = 5

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        for number in range(first, 5):
            self.asked.append((epoch, number))
            yield next(super().epoch(5 * epoch + number))


def test_an_epoch_has_as_many_steps_as_it_has_whole_groups_of_batches(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=unclipped(5, accum_steps=2))
    run.batches = Counted()
    records = [r for r in fit(run) if "loss" in r]
    # The fifth batch of an epoch is left over; the run ends in the middle of the third epoch.
    assert run.batches.asked == [(epoch, number) for epoch in (0, 1) for number in range(4)] + [(2, 0), (2, 1)]
    assert [r["epoch"] for r in records] == [0, 0, 1, 1, 2]
    assert run.progress.step == 5


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_resume_between_groups_of_batches_continues_bit_for_bit(tmp_path: Path, stop_at: int, chunk: int | None) -> None:
    def run_of(folder: str) -> Trainer:
        run = trainer(tmp_path / folder, plan=unclipped(5, accum_steps=2, grad_cache_chunk=chunk))
        run.batches = Counted()
        return run

    whole = run_of("whole")
    fit(whole)
    broken = run_of("broken")
    with pytest.raises(Interrupted):
        fit(broken, should_stop=lambda: broken.progress.step == stop_at)
    resumed = run_of("broken")
    resumed.resume(tmp_path / "broken" / "last")
    fit(resumed)
    assert equal(whole, resumed)
    assert broken.batches.asked + resumed.batches.asked == whole.batches.asked  # type: ignore[attr-defined]


@pytest.mark.parametrize("accum_steps", [0, 4])
def test_a_step_of_more_batches_than_an_epoch_has_is_refused(tmp_path: Path, accum_steps: int) -> None:
    message = f"--accum-steps {accum_steps}: an epoch has 3 batches; expected a number from 1 to 3"
    with pytest.raises(ConfigError, match=message):
        fit(trainer(tmp_path, plan=replace(PLAN, accum_steps=accum_steps)))


def test_drift_of_a_step_of_several_batches_is_refused(tmp_path: Path, two_processes: Seen) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, accum_steps=2, diagnostics_every=1))
    run.diagnostics = object()  # type: ignore[assignment]
    with pytest.raises(
        ConfigError, match="--diagnostics: a step is made of 2 batches on 1 processes; .* leave --diagnostics out"
    ):
        fit(run)
    for seen in two_processes["together"]:
        assert seen["refused"].startswith("--diagnostics: a step is made of 1 batches on 2 processes")


def test_numbers_that_not_every_batch_has_are_averaged_over_those_that_have_them() -> None:
    first = LossOutput(torch.tensor(1.0), {"loss": 1.0}, {"common": 2.0, "rare": 5.0})
    second = LossOutput(torch.tensor(3.0), {"loss": 3.0}, {"common": 4.0})
    mean = mean_output([first, second])
    assert (mean.total, mean.terms, mean.stats) == (torch.tensor(2.0), {"loss": 2.0}, {"common": 3.0, "rare": 5.0})
    assert mean_output([first]) is first


def test_speed_counts_the_clips_of_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))  # of these two modules: others ask the time, too
    monkeypatch.setattr("clapkit.training.loop.time", clock)
    monkeypatch.setattr("clapkit.training.arrivals.time", clock)
    (record,) = (r for r in fit(trainer(tmp_path, plan=unclipped(1, accum_steps=3))) if "loss" in r)
    # Asked at the start, before and after each of 3 batches, and now: 7 s for 3 batches of 4 clips, 3 s of them waited.
    assert record["clips_per_s"] == 12 / 7
    assert record["data_wait_share"] == 3 / 7


def test_batches_of_a_step_are_taken_one_by_one_and_let_go(tmp_path: Path) -> None:
    alive: list[int] = []
    waveforms: list[weakref.ref[Tensor]] = []

    class Watched(Batches):
        def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
            for _ in range(first, 3):
                # A waveform that nobody else holds, as those of files.
                batch = next(super().epoch(epoch))
                batch.waveform = batch.waveform.clone()
                waveforms.append(weakref.ref(batch.waveform))
                alive.append(sum(waveform() is not None for waveform in waveforms))
                box = [batch]
                del batch
                yield box.pop()

    run = trainer(tmp_path, plan=unclipped(2, accum_steps=3))
    run.batches = Watched()
    fit(run)
    assert alive == [1] * 6


# Several processes ------------------------------------------------------------------------------------------------------


def test_only_the_first_process_writes_shows_and_logs(two_processes: Seen) -> None:
    first, second = (seen["accumulated"]["together"]["records"] for seen in two_processes["combined"])
    assert [("best" in r, "loss" in r, "x" in r) for r in first] == [
        *[(False, False, True)],  # before the first step
        *[(False, True, False)] * 3,
        *[(False, False, True), (True, False, False)],
    ]
    assert second == []


def test_processes_that_start_apart_are_brought_together(two_processes: Seen) -> None:
    first, second = (seen["apart"] for seen in two_processes["together"])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_processes_draw_differently(two_processes: Seen) -> None:
    first, second = (seen["drawn"] for seen in two_processes["together"])
    assert not torch.equal(first, second)


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_saves_once(two_processes: Seen) -> None:
    assert [seen["interrupted"] for seen in two_processes["together"]] == [(True, 4, [4]), (True, 4, [])]


def test_where_one_process_cannot_go_on_the_other_says_so_in_one_line(left_alone: list[dict[str, Any]]) -> None:
    waiting, failed = left_alone
    assert failed == {"error": "AudioError", "message": "one.wav: is empty"}
    assert waiting["error"] == "ProcessError"
    assert waiting["message"].startswith("another process of this training has ended (")
    assert "\n" not in waiting["message"]


def test_two_processes_resume_bit_for_bit(two_processes: Seen) -> None:
    for seen in two_processes["together"]:
        assert all(torch.equal(seen["resumed"][name], tensor) for name, tensor in seen["whole"].items())


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_with_a_checkpoint_of_two(
    two_processes: Seen, resumed_by: Callable[[int], list[dict[str, Any]]]
) -> None:
    of_four = resumed_by(4)
    for seen in of_four:
        assert (seen["before"], seen["after"]) == (4, 7)
        assert torch.equal(seen["drawn"][0], seen["drawn"][1])  # the same each time,
        assert all(torch.equal(seen["weights"][name], tensor) for name, tensor in of_four[0]["weights"].items())
    assert len({float(seen["drawn"][0][0]) for seen in of_four}) == 4  # on each process something else


def test_long_captions_add_up_over_processes_and_calls(tmp_path: Path) -> None:
    class One(OneProcess):
        def gather_values(self, value: Any) -> list[Any]:
            return [value, (3, 2)] if isinstance(value, tuple) else [value]

    class Other(OneProcess):
        is_first = False

    run = trainer(tmp_path)
    run.progress.captions_cut, run.processes = 4, One()
    run.save()
    assert (run.progress.captions_cut, run.progress.captions_split) == (4, 0)
    for processes, expected in ((OneProcess(), (7, 2)), (Other(), (0, 0))):
        resumed = trainer(tmp_path)
        resumed.processes = processes
        resumed.resume(tmp_path / "last")
        assert (resumed.progress.captions_cut, resumed.progress.captions_split) == expected


def test_one_process_goes_on_with_a_checkpoint_of_two(tmp_path: Path) -> None:
    def drawn(seed: int) -> Tensor:
        resumed = trainer(tmp_path)
        resumed.resume(tmp_path / "last", seed=seed)
        assert resumed.progress.step == 8
        return torch.rand(3)

    run = trainer(tmp_path)
    fit(run)
    run._write([generator_state(), generator_state()], asdict(run.progress))
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_a_checkpoint_from_before_there_were_several_processes_loads(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    fit(run)
    run._write(generator_state(), asdict(run.progress))  # type: ignore[arg-type] - a single state where now is a list
    expected = torch.rand(3)
    resumed = trainer(tmp_path)
    resumed.resume(tmp_path / "last")
    assert torch.equal(torch.rand(3), expected)
