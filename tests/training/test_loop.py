from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clapkit import registry
from clapkit.errors import NumericalError
from clapkit.training.loop import Interrupted, Plan, Trainer
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.types import Batch, SilentReporter

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

    def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        audio = self.audio(self.dropout(waveform))
        text = self.text(torch.tensor([int(caption) for caption in captions]))
        return nn.functional.normalize(audio, dim=1), nn.functional.normalize(text, dim=1)


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
