import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError
from clapkit.steps.train_drift import parts_of
from clapkit.training.diagnostics import (
    Diagnostics,
    Pairs,
    cosines,
    embed_bank,
    forces,
    forces_in_batches,
    perpendicular_ratios,
    pull,
    pull_cosines,
    shuffles,
    step_cosines,
    summarize,
)
from clapkit.training.loop import Interrupted, Plan, Trainer
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.types import Batch, SilentReporter

PLAN = Plan(
    total_steps=7,
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
    diagnostics_every=2,
)
FEATURES = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
PER_ROW = ("force_cos_local", "force_cos_global", "step_cos", "perp_ratio", "perp_ratio_variance")


def batch_of(rows: Tensor) -> Batch:
    keys = rows[:, None] + 1
    return Batch(
        waveform=FEATURES[rows],
        num_samples=torch.full((len(rows),), 8),
        captions=[str(int(row)) for row in rows],
        index=rows,
        text_keys=keys,
        clip_keys=keys,
        audio_row=torch.arange(len(rows)),
    )


class Encoder(nn.Module):
    """Eight features to four; text looks up its row. Dropout and running statistics are what a measurement could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.norm, self.text = nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Embedding(12, 4)
        self.dropout = nn.Dropout(0.2)

    def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        audio = self.norm(self.audio(self.dropout(waveform)))
        text = self.dropout(self.text(torch.tensor([int(caption) for caption in captions])))
        return normalize(audio, dim=1), normalize(text, dim=1)


class Batches:
    batches_per_epoch = 3

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        rows = torch.randperm(12, generator=torch.Generator().manual_seed(100 + epoch)).view(3, 4)
        yield from (batch_of(rows[number]) for number in range(first, 3))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def objective_of(loss: str, **options: Any) -> nn.Module:
    if loss == "svr":
        options = {"radius": "adaptive", "batch_size": 4, **options}
    return registry.build("loss", loss, options)


def trainer(folder: Path, *, plan: Plan = PLAN, loss: str = "svr", on: bool = True, seed: int = 0, **options: Any) -> Trainer:
    torch.manual_seed(0)
    encoder, objective = Encoder(), objective_of(loss, **options)
    reference = registry.build("loss", "infonce", {})
    reference.temperature = (objective.base if loss == "svr" else objective).temperature
    diagnostics = Diagnostics(
        reference,
        probe=batch_of(torch.arange(5)),
        bank=[batch_of(torch.arange(6)), batch_of(torch.arange(6, 10))],  # ten pairs: not a multiple of the batch
        geometry={"gap": lambda audio, text: float((audio.mean(dim=0) - text.mean(dim=0)).norm())},
        num_draws=3,
        seed=seed,
        parts=parts_of(objective),
    )
    return Trainer(
        encoder,
        objective,
        optimizer=build_optimizer(
            parameter_groups(encoder, lr=0.05, weight_decay=0.01) + objective.param_groups(0.05, 0.0)  # type: ignore[operator]
        ),
        batches=Batches(),
        plan=plan,
        device=torch.device("cpu"),
        checkpoint_dir=folder,
        diagnostics=diagnostics if on else None,
    )


def fit(run: Trainer, **options: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    with SilentReporter().track("", None) as tracker:
        run.fit(
            validate=lambda: {"t2a_R@1": 0.5},
            log=lambda record: records.append(dict(record)),
            tracker=tracker,
            on_best=lambda: None,
            **options,
        )
    return records


def drift_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "drift_seconds"} for r in records if "drift_seconds" in r]


def everything(run: Trainer) -> dict[str, Any]:
    """Whatever the next step depends on, as plain tensors."""
    state = {f"{m}.{k}": v for m in ("encoder", "objective") for k, v in getattr(run, m).state_dict().items()}
    for key, values in run.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{key}.{name}": value for name, value in values.items()}
    scaler = {f"scaler.{k}": torch.as_tensor(v) for k, v in run.scaler.state_dict().items()}
    return state | scaler | {"generator": torch.get_rng_state()}


def make_pairs(num_pairs: int = 6, width: int = 5, *, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    shared, audio, text = torch.randn(3, num_pairs, width, generator=generator, dtype=torch.float64)
    own = torch.eye(num_pairs, dtype=torch.bool)
    return Pairs(normalize(shared + audio, dim=1), normalize(shared + text, dim=1), own, torch.arange(num_pairs))


# In the loop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss", ["svr", "infonce"])
def test_training_is_the_same_bit_for_bit_with_and_without(tmp_path: Path, loss: str, precision: Any) -> None:
    plan = replace(PLAN, precision=precision)
    plain = trainer(tmp_path / "plain", plan=plan, loss=loss, on=False)
    expected = fit(plain)
    state = everything(plain)  # before the other run seeds and moves the global generator
    measured = trainer(tmp_path / "measured", plan=plan, loss=loss)
    records = fit(measured)
    after = everything(measured)
    assert state.keys() == after.keys()
    assert [key for key in state if not torch.equal(state[key], after[key])] == []
    assert measured.encoder.training
    assert [r["step"] for r in drift_of(records)] == [1, 2, 4, 6]
    for with_drift, without in zip((r for r in records if "loss" in r), (r for r in expected if "loss" in r), strict=True):
        for name in without.keys() - {"clips_per_s", "data_wait_share"}:
            assert with_drift[name] == without[name], name


def test_nothing_is_measured_unless_the_plan_asks_for_it(tmp_path: Path) -> None:
    assert drift_of(fit(trainer(tmp_path, plan=replace(PLAN, diagnostics_every=None)))) == []


def test_a_record_holds_every_number_with_its_reference_and_is_plain_json(tmp_path: Path) -> None:
    records = [r for r in fit(trainer(tmp_path)) if "drift_seconds" in r]
    names = [f"{prefix}{name}{end}" for prefix in ("", "infonce_") for name in PER_ROW for end in ("", "_q10", "_q90")]
    names += [f"infonce_force_cos_bank{end}" for end in ("", "_q10", "_q90")]
    names += ["grad_cos_directions", "grad_cos_added"]
    assert set(records[0]) == {*names, "gap", "drift_rows_left_out", "drift_seconds", "step"}
    for record in records:
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["force_cos_local_q10"] <= record["force_cos_local"] <= record["force_cos_local_q90"] <= 1
        assert record["perp_ratio_variance"] > 0
        assert record["drift_seconds"] > 0
    # Texts of the probe that were in no batch yet do not move, under either loss.
    first, second = (set(batch.index.tolist()) for batch in list(Batches().epoch(0))[:2])
    unmoved = [len(set(range(5)) - first), len(set(range(5)) - first - second)]
    assert [record["drift_rows_left_out"] for record in records] == [2 * unmoved[0], 2 * unmoved[1], 0, 0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_for_an_infonce_run_both_columns_are_the_same(tmp_path: Path, precision: Any) -> None:
    for record in drift_of(fit(trainer(tmp_path, plan=replace(PLAN, precision=precision), loss="infonce"))):
        own = {k: v for k, v in record.items() if f"infonce_{k}" in record}
        assert len(own) == 3 * len(PER_ROW)
        assert own == {k: record[f"infonce_{k}"] for k in own}


def test_for_svr_they_differ(tmp_path: Path) -> None:
    records = drift_of(fit(trainer(tmp_path, radius="ratio", radius_init=0.2)))
    for name in PER_ROW:  # a step moves each text of the probe alike where it is not in the batch
        assert any(record[name] != record[f"infonce_{name}"] for record in records), name


def test_a_bi_svr_of_radius_zero_has_the_forces_of_infonce(tmp_path: Path) -> None:
    for record in drift_of(fit(trainer(tmp_path, radius="fixed", radius_init=0.0))):
        for name in ("force_cos_local", "force_cos_global", "perp_ratio", "perp_ratio_variance"):
            assert record[name] == pytest.approx(record[f"infonce_{name}"], rel=1e-4), name


def test_the_measured_step_is_the_step_that_is_taken(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, total_steps=1, eval_every=1))
    probe = batch_of(torch.arange(5))

    def embedded() -> list[Tensor]:
        with torch.no_grad():
            return [x.double() for x in run.encoder.eval()(probe.waveform, probe.num_samples, probe.captions)]

    audio, text = embedded()
    (record,) = drift_of(fit(run))
    moved = embedded()[1] - text
    has_moved = moved.norm(dim=1) > 1e-6
    expected = torch.cosine_similarity(moved, audio - text, dim=1)[has_moved].mean()
    assert record["step_cos"] == pytest.approx(float(expected), abs=1e-12)


def test_the_compared_gradients_are_those_of_the_step_that_is_taken(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, total_steps=1, eval_every=1), radius="ratio", radius_init=0.2)
    encoder, generator = copy.deepcopy(run.encoder).train(), torch.get_rng_state()
    (record,) = drift_of(fit(run))
    torch.set_rng_state(generator)
    batch = next(Batches().epoch(0))
    audio, text = encoder(batch.waveform, batch.num_samples, batch.captions)  # with the dropout of the step

    def gradient(total: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(encoder.parameters()), retain_graph=True)])

    fresh = objective_of("svr", radius="ratio", radius_init=0.2)
    args = (audio, text, batch.positives(), batch.index, 0.0)
    base = gradient(fresh.base(*args).total)
    added = gradient(fresh(*args).total) - base
    assert record["grad_cos_added"] == pytest.approx(float(torch.cosine_similarity(base, added, dim=0)), abs=1e-5)
    logits, own = text @ audio.T * fresh.base.temperature.scale(batch.index, 0.0), torch.arange(len(batch.index))
    t2a, a2t = (gradient(nn.functional.cross_entropy(rows, own)) for rows in (logits, logits.T))
    assert record["grad_cos_directions"] == pytest.approx(float(torch.cosine_similarity(t2a, a2t, dim=0)), abs=1e-5)


def test_languages_of_a_batch_are_compared(tmp_path: Path) -> None:
    class InTwoLanguages(Encoder):
        def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str], *more: Any) -> tuple[Tensor, Tensor]:
            return super().forward(waveform, num_samples, captions)

    class Spoken(Batches):
        def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
            for batch in super().epoch(epoch, first=first):
                yield replace(batch, languages=["en", "de", "de", "en"])

    run = trainer(tmp_path, plan=replace(PLAN, total_steps=1), loss="infonce")
    run.encoder, run.batches = InTwoLanguages(), Spoken()
    run.optimizer = build_optimizer(parameter_groups(run.encoder, lr=0.05, weight_decay=0.0))
    (record,) = drift_of(fit(run))
    assert -1 <= record["grad_cos_languages"] == record["grad_cos_languages_min"] <= 1
    assert "grad_cos_added" not in record


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_resumed_run_measures_what_the_whole_run_measured(tmp_path: Path, stop_at: int) -> None:
    plan = replace(PLAN, total_steps=4)
    expected = drift_of(fit(trainer(tmp_path / "whole", plan=plan)))
    broken = trainer(tmp_path / "broken", plan=plan)
    first: list[dict[str, Any]] = []
    with pytest.raises(Interrupted), SilentReporter().track("", None) as tracker:
        broken.fit(
            validate=lambda: {"t2a_R@1": 0.5},
            log=lambda record: first.append(dict(record)),
            tracker=tracker,
            on_best=lambda: None,
            should_stop=lambda: broken.progress.step == stop_at,
        )
    resumed = trainer(tmp_path / "broken", plan=plan)
    resumed.resume(tmp_path / "broken" / "last")
    assert drift_of(first) + drift_of(fit(resumed)) == expected


def test_the_draws_come_from_the_seed(tmp_path: Path) -> None:
    plan = replace(PLAN, total_steps=1)
    first, same, other = (drift_of(fit(trainer(tmp_path / str(i), plan=plan, seed=s)))[0] for i, s in enumerate((3, 3, 4)))
    assert first == same
    assert first["force_cos_global"] != other["force_cos_global"]
    assert first["infonce_force_cos_bank"] == other["infonce_force_cos_bank"]  # which takes all negatives at once


def test_collapsed_embeddings_leave_numbers_out_instead_of_writing_nan(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan=replace(PLAN, total_steps=1), loss="infonce")

    class Collapsed(Encoder):
        def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
            same = normalize(torch.ones(len(captions), 4) + 0 * self.audio(waveform), dim=1)
            return same, same.clone()

    run.encoder = Collapsed()
    run.optimizer = build_optimizer(parameter_groups(run.encoder, lr=0.05, weight_decay=0.0))
    (record,) = drift_of(fit(run))
    assert record == {"step": 1, "gap": 0.0, "drift_rows_left_out": 2 * (4 + 10 + 5 + 10 + 10) + 10}


def test_a_bank_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.diagnostics = Diagnostics(run.objective, probe=batch_of(torch.arange(5)), bank=[batch_of(torch.arange(3))], geometry={})
    with pytest.raises(ConfigError, match="the bank has 3 pairs, expected at least a batch of 4; enlarge it"):
        fit(run)


@pytest.mark.parametrize(("num_batches", "num_draws"), [(0, 8), (1, 0)])
def test_nothing_to_draw_is_refused(num_batches: int, num_draws: int) -> None:
    probe = batch_of(torch.arange(5))
    with pytest.raises(ConfigError, match=f"{num_batches} bank batches and num_draws={num_draws}; expected 1 or more"):
        Diagnostics(nn.Identity(), probe=probe, bank=[probe] * num_batches, geometry={}, num_draws=num_draws)


# Forces -----------------------------------------------------------------------------------------------------------------


def test_the_force_of_one_sided_svr_is_that_of_the_derivation() -> None:
    """With rho = R / D, u the pull direction and P, P' the softmax of text and support vector over the clips:

    N tau dL/dt_i = (g + alpha (g'_par + (1 - rho) g'_perp)) / 2 + (sum_j Q_ji a_j - a_i) / 2,
    g = sum_j P_ij a_j - a_i, g' = sum_j P'_ij a_j - a_i, Q_ji the softmax of clip j over the texts (the other direction).
    """
    tau, radius, alpha = 0.3, 0.4, 0.7
    pairs = make_pairs()
    objective = registry.build(
        "loss",
        "svr",
        {"radius": "fixed", "radius_init": radius, "sides": "uni", "alpha": alpha, "temperature": "fixed", "tau": tau},
    )
    audio, text = pairs.audio, pairs.text
    expected = torch.zeros_like(text)
    reverse = torch.softmax(audio @ text.T / tau, dim=1)  # rows are clips
    for i in range(len(pairs)):
        distance = (audio[i] - text[i]).norm()
        u = (audio[i] - text[i]) / distance
        plain = torch.softmax(audio @ text[i] / tau, dim=0) @ audio - audio[i]
        moved = torch.softmax(audio @ (text[i] + radius * u) / tau, dim=0) @ audio - audio[i]
        along = (moved @ u) * u
        gradient = (plain + alpha * (along + (1 - radius / distance) * (moved - along))) / 2
        gradient = (gradient + (reverse[:, i] @ audio - audio[i]) / 2) / (len(pairs) * tau)
        expected[i] = -(gradient - (gradient @ text[i]) * text[i])
    force = forces(objective, pairs, 0.0)
    torch.testing.assert_close(force, expected, atol=1e-7, rtol=1e-5)  # the distance has a small constant under its root
    assert (force * text).sum(dim=1).abs().max() < 1e-12


def test_rotation_changes_no_number() -> None:
    pairs, objective = make_pairs(), registry.build("loss", "svr", {"radius": "ratio"})
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    turned = replace(pairs, audio=pairs.audio @ rotation, text=pairs.text @ rotation)
    moved, moved_turned = replace(pairs, text=pairs.audio.flip(0)), replace(turned, text=turned.audio.flip(0))
    for function in (pull_cosines, perpendicular_ratios):
        torch.testing.assert_close(
            function(forces(objective, turned, 0.0), turned), function(forces(objective, pairs, 0.0), pairs)
        )
    torch.testing.assert_close(step_cosines(turned, moved_turned), step_cosines(pairs, moved))


def test_negatives_that_mirror_each_other_across_the_pull_cause_no_drift() -> None:
    # The pull of text 0 lies in the plane of the first two axes; both negatives are the same but for the sign of the third.
    audio = normalize(torch.tensor([[0.8, 0.6, 0.0], [0.3, 0.2, 0.9], [0.3, 0.2, -0.9]], dtype=torch.float64), dim=1)
    text = normalize(torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.8], [0.2, 0.5, -0.8]], dtype=torch.float64), dim=1)
    pairs = Pairs(audio, text, torch.eye(3, dtype=torch.bool), torch.arange(3))
    for loss, options in (("infonce", {}), ("svr", {"radius": "ratio"})):
        force = forces(registry.build("loss", loss, options), pairs, 0.0)
        assert perpendicular_ratios(force, pairs)[0] < 1e-7
        assert perpendicular_ratios(force, pairs)[1] > 1e-3
        assert pull_cosines(force, pairs)[0] == pytest.approx(1.0, abs=1e-9)


def test_ratio_and_cosine_of_a_known_force() -> None:
    # Text on the first axis, clip at 45 degrees towards the second: the pull is the second axis.
    half = math.sqrt(0.5)
    pairs = Pairs(torch.tensor([[half, half, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1, 1).bool(), torch.zeros(1))
    torch.testing.assert_close(pull(pairs), torch.tensor([[0.0, half, 0.0]], dtype=torch.float64))
    force = torch.tensor([[0.0, 4.0, -3.0]], dtype=torch.float64)
    assert perpendicular_ratios(force, pairs).item() == pytest.approx(3 / 4)
    assert pull_cosines(force, pairs).item() == pytest.approx(4 / 5)
    assert pull_cosines(-force, pairs).item() == pytest.approx(-4 / 5)
    assert perpendicular_ratios(-force, pairs).item() == pytest.approx(3 / 4)
    assert perpendicular_ratios(torch.tensor([[0.0, 0.0, 1.0]]).double(), pairs).isnan()  # nothing along the pull


def test_a_pair_that_coincides_has_no_pull() -> None:
    pairs = make_pairs()
    audio = pairs.audio.clone()
    audio[2] = pairs.text[2] * (1 + 1e-8)
    pairs = replace(pairs, audio=audio)
    force = forces(registry.build("loss", "infonce", {}), pairs, 0.0)
    for values in (pull_cosines(force, pairs), perpendicular_ratios(force, pairs), step_cosines(pairs, make_pairs(seed=1))):
        assert values.isnan().tolist() == [False, False, True, False, False, False]


def test_a_text_that_did_not_move_has_no_direction() -> None:
    assert step_cosines(make_pairs(), make_pairs()).isnan().all()


# Bank -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_pairs", [8, 10])
def test_every_row_is_an_anchor_once_among_a_batch_of_negatives(num_pairs: int) -> None:
    pairs = make_pairs(num_pairs)
    seen: list[list[int]] = []

    class Spy(nn.Module):
        """A loss whose gradient on a text is its row number + 1, on the first axis."""

        def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> Any:
            seen.append(index.tolist())
            assert torch.equal(positives, torch.eye(4, dtype=torch.bool))
            return type("Output", (), {"total": (text[:, 0] * (index + 1)).sum()})

    (order,) = shuffles(num_pairs, num_draws=1, seed=0)
    force = forces_in_batches(Spy(), pairs, order, 4, 0.5)
    first_axis = torch.eye(5, dtype=torch.float64)[0]
    expected = -(first_axis - pairs.text[:, :1] * pairs.text) * (pairs.index[:, None] + 1)
    torch.testing.assert_close(force, expected)
    assert all(len(set(rows)) == 4 for rows in seen)
    assert len(seen) == math.ceil(num_pairs / 4)
    assert {row for rows in seen for row in rows} == set(range(num_pairs))


def test_draws_that_are_all_the_same_batch_do_not_vary() -> None:
    pairs, objective = make_pairs(6), registry.build("loss", "svr", {"batch_size": 6})
    whole = forces(objective, pairs, 0.0)
    for order in shuffles(6, num_draws=3, seed=0):
        torch.testing.assert_close(forces_in_batches(objective, pairs, order, 6, 0.0), whole)


def test_shuffles_repeat_with_the_seed_and_differ_among_each_other() -> None:
    first, again = list(shuffles(9, num_draws=2, seed=1)), list(shuffles(9, num_draws=2, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first)
    assert not torch.equal(first[0], next(shuffles(9, num_draws=2, seed=2)))


def test_the_bank_knows_the_positives_across_its_batches() -> None:
    # The second batch has wider keys; its first caption (key 3) is also true of clip 2 of the first batch (keys 3).
    first, second = batch_of(torch.arange(4)), batch_of(torch.arange(4, 7))
    second.text_keys = torch.tensor([[5, 3], [6, 0], [7, 0]])
    bank = embed_bank(Encoder().eval(), [first, second], torch.device("cpu"))
    expected = torch.eye(7, dtype=torch.bool)
    expected[4, 2] = expected[2, 4] = True
    assert torch.equal(bank.positives, expected)
    assert torch.equal(bank.index, torch.arange(7))
    assert not bank.text.requires_grad
    part = bank.at(torch.tensor([4, 2, 0]))
    assert part.positives.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_pairs_that_share_a_clip_share_its_embedding() -> None:
    batch = batch_of(torch.arange(3))
    batch.waveform, batch.num_samples, batch.audio_row = batch.waveform[:2], batch.num_samples[:2], torch.tensor([0, 1, 0])
    bank = embed_bank(Encoder().eval(), [batch], torch.device("cpu"))
    assert bank.audio.shape == bank.text.shape == (3, 4)
    assert torch.equal(bank.audio[0], bank.audio[2])
    assert not torch.equal(bank.audio[0], bank.audio[1])


def test_a_row_of_zeros_has_no_cosine() -> None:
    assert cosines(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).isnan().tolist() == [
        True,
        False,
    ]


def test_cosines_are_averaged_and_of_ratios_the_median_is_taken():
    rows = torch.tensor([0.0, 1.0, 2.0, 100.0, torch.nan], dtype=torch.float64)
    record = summarize({"step_cos": rows, "perp_ratio": rows})
    assert record["step_cos"] == pytest.approx(103 / 4)
    assert record["perp_ratio"] == pytest.approx(1.5)
    # Deciles of 0, 1, 2, 100, linear between the points 0, 1/3, 2/3, 1: at 0.9, 2 + 98 (0.9 - 2/3) / (1/3).
    assert record["perp_ratio_q90"] == pytest.approx(2 + 98 * 0.7)
    assert record["drift_rows_left_out"] == 2
