"""What objectives are told beside the embeddings of the pairs, and that it is the same however the batch was encoded."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clapkit.training.distributed import OneProcess
from clapkit.training.loop import Interrupted, Trainer
from clapkit.types import Context

Seen = dict[str, list[dict[str, Any]]]
EVERYTHING = frozenset({"language", "variants", "teacher", "features"})
CHUNKS = [1, 3, 100]


@pytest.fixture
def make_run(worker: ModuleType, tmp_path: Path) -> Callable[..., Trainer]:
    """A run of the objective ``Told`` of ``worker.py``, which depends on everything that it can be told."""

    def make(needs: frozenset[str] = EVERYTHING, *, folder: str = "run", **options: Any) -> Trainer:
        run: Trainer = worker.told(OneProcess(), tmp_path / folder, needs=needs, **options)
        return run

    return make


def watched(run: Trainer) -> list[tuple[Any, Context | None]]:
    """What the objective is called with, filled while the run goes on."""
    calls: list[tuple[Any, Context | None]] = []

    def note(module: nn.Module, given: Any, named: dict[str, Any]) -> None:
        calls.append((given, named.get("context")))

    run.objective.register_forward_pre_hook(note, with_kwargs=True)
    return calls


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def test_everything_that_was_asked_for_is_there_in_rows_of_the_pairs(
    worker: ModuleType, make_run: Callable[..., Trainer]
) -> None:
    run = make_run()
    calls = watched(run)
    batch = next(run.batches.epoch(0))
    teacher = run.teacher.encoder
    worker.fit(run)
    ((audio, text, positives, index, progress), context) = calls[0]
    # 4 clips, 8 captions of which each has 2 variants; embeddings of 8 numbers.
    assert audio.shape == text.shape == (8, 8)
    assert torch.equal(index, batch.index)
    assert context.variants.shape == (8, 2, 8)
    assert torch.equal(context.variant_truth, batch.variant_truth)
    assert torch.equal(context.sentence_keys, batch.sentence_keys)
    assert torch.equal(context.true_keys, batch.true_keys)
    assert context.language.tolist() == [int.from_bytes(tag.encode(), "big") for tag in batch.languages]
    for name in ("teacher_audio", "teacher_text", "audio_features", "text_features"):
        assert getattr(context, name).shape == (8, 8), name
    assert context.windows is None
    assert context.is_window is None
    # Pairs of one clip hear one sound, whoever hears it; features are what embeddings were before.
    for rows in (audio, context.audio_features, context.teacher_audio):
        assert torch.equal(rows[0::2], rows[1::2])
    torch.testing.assert_close(normalize(context.audio_features, dim=1), audio, rtol=0, atol=1e-15)
    torch.testing.assert_close(normalize(context.text_features, dim=1), text, rtol=0, atol=1e-15)
    assert not torch.allclose(context.text_features.norm(dim=1), torch.ones(8, dtype=torch.float64))
    for rows in (audio, text, context.variants, context.teacher_audio, context.teacher_text):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1], dtype=torch.float64))
    assert audio.dtype == context.audio_features.dtype == torch.float64
    # Gradients are wanted of what the encoder made, and not of the teacher.
    assert audio.requires_grad
    assert context.variants.requires_grad
    assert context.audio_features.requires_grad
    assert not context.teacher_audio.requires_grad
    assert not context.teacher_text.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    # Every variant is embedded as the sentence that it is.
    sentence = make_run().encoder.encode_text([batch.variants[5]], [batch.languages[2]])
    torch.testing.assert_close(context.variants[2, 1], sentence[0].detach(), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("needs", "more"),
    [
        (frozenset({"language", "variants"}), set()),
        (frozenset({"teacher"}), {"teacher_audio", "teacher_text"}),
        (frozenset({"features"}), {"audio_features", "text_features"}),
    ],
)
def test_beside_what_the_batch_brings_there_is_only_what_was_asked_for(
    worker: ModuleType, make_run: Callable[..., Trainer], needs: frozenset[str], more: set[str]
) -> None:
    run = make_run(needs)
    calls = watched(run)
    worker.fit(run)
    there = {name for name in Context.__dataclass_fields__ if getattr(calls[0][1], name) is not None}
    assert there == {"language", "variants", "variant_truth", "sentence_keys", "true_keys"} | more
    assert (run.teacher is None) == ("teacher" not in needs)


def test_an_objective_that_needs_nothing_is_called_without_a_context(
    worker: ModuleType, make_run: Callable[..., Trainer]
) -> None:
    run = make_run(frozenset())
    calls = watched(run)
    worker.fit(run)
    assert calls[0][1] is None
    assert len(calls[0][0]) == 5


@pytest.mark.parametrize("needs", [EVERYTHING, frozenset({"variants"}), frozenset({"features", "teacher"})])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_give_gradients_and_numbers_of_the_whole_batch(
    worker: ModuleType, make_run: Callable[..., Trainer], chunk: int, needs: frozenset[str]
) -> None:
    whole, parts = make_run(needs, total_steps=3), make_run(needs, total_steps=3, grad_cache_chunk=chunk)
    expected, found = worker.seen_of(whole), worker.seen_of(parts)
    assert_same(found["gradients"], expected["gradients"])
    assert_same(found["weights"], expected["weights"])
    for record, plain in zip(found["records"], expected["records"], strict=True):
        assert record == pytest.approx(plain, rel=1e-10)
    names = {name for name, gradient in expected["gradients"].items() if gradient.norm() > 0}
    assert {"encoder.audio.weight", "encoder.text.weight", "encoder.tongue.weight"} <= names


def test_every_part_of_the_context_reaches_the_encoder(worker: ModuleType, make_run: Callable[..., Trainer]) -> None:
    """Otherwise the tests around this one would compare zeros."""
    losses = {needs: worker.seen_of(make_run(needs)) for needs in (frozenset(), *(frozenset({n}) for n in sorted(EVERYTHING)))}
    plain = losses.pop(frozenset())["gradients"]
    for needs, seen in losses.items():
        assert not torch.allclose(seen["gradients"]["encoder.text.weight"], plain["encoder.text.weight"]), needs


def test_accumulated_batches_are_told_alike(worker: ModuleType, make_run: Callable[..., Trainer]) -> None:
    run = make_run(accum_steps=2)
    calls = watched(run)
    batches = run.batches.epoch(0)
    start = worker.weights(run)
    worker.fit(run)
    assert len(calls) == 2
    for (_, context), batch in zip(calls, batches, strict=False):
        assert torch.equal(context.variant_truth, batch.variant_truth)
    # The teacher took one step, not two.
    now = worker.weights(run)["encoder.audio.weight"]
    before = start["encoder.audio.weight"]
    torch.testing.assert_close(run.teacher.encoder.audio.weight.detach(), before + 0.25 * (now - before))


def test_the_teacher_follows_after_every_step(worker: ModuleType, make_run: Callable[..., Trainer]) -> None:
    run = make_run(total_steps=4, log_every=1)
    start = run.teacher.encoder.text.weight.detach().clone()
    expected, calls = start.clone(), watched(run)
    follow = run.teacher.follow

    def counted(encoder: nn.Module) -> None:
        follow(encoder)
        expected.mul_(0.75).add_(0.25 * encoder.text.weight.detach())

    run.teacher.follow = counted
    worker.fit(run)
    torch.testing.assert_close(run.teacher.encoder.text.weight.detach(), expected)
    assert not torch.allclose(expected, start)
    assert len(calls) == 4


@pytest.mark.parametrize("momentum", [None, 0.75])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_run_with_a_teacher_resumes_bit_for_bit(
    worker: ModuleType, make_run: Callable[..., Trainer], stop_at: int, momentum: float | None
) -> None:
    def run(folder: str) -> Trainer:
        return make_run(folder=folder, momentum=momentum, total_steps=6, dropout=0.3)

    whole = run("whole")
    worker.fit(whole)
    broken = run("broken")  # seeded like the other
    with pytest.raises(Interrupted):
        worker.fit(broken, should_stop=lambda: broken.progress.step == stop_at)
    resumed = run("broken")
    torch.rand(3)
    resumed.resume(resumed.checkpoint_dir / "last")
    worker.fit(resumed)
    expected = worker.weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in worker.weights(resumed).items())
    for name, tensor in whole.teacher.encoder.state_dict().items():
        assert torch.equal(resumed.teacher.encoder.state_dict()[name], tensor), name
    saved = torch.load(whole.checkpoint_dir / "last" / "state.pt", weights_only=True)["teacher"]
    assert set(saved) == (set() if momentum is None else set(whole.teacher.encoder.state_dict()))


def test_a_resumed_run_that_forgot_its_teacher_would_be_another_one(
    worker: ModuleType, make_run: Callable[..., Trainer]
) -> None:
    whole, broken = make_run(folder="whole", total_steps=6), make_run(folder="broken", total_steps=6)
    worker.fit(whole)
    with pytest.raises(Interrupted):
        worker.fit(broken, should_stop=lambda: broken.progress.step == 3)
    resumed = make_run(folder="broken", total_steps=6)
    resumed.teacher.load_state_dict = lambda state: None
    resumed.resume(resumed.checkpoint_dir / "last")
    worker.fit(resumed)
    assert not torch.equal(resumed.encoder.text.weight, whole.encoder.text.weight)


def test_a_teacher_draws_nothing_and_leaves_the_encoder_in_training(
    worker: ModuleType, make_run: Callable[..., Trainer]
) -> None:
    """With dropout: a run whose loss does not look at its teacher goes as one without it."""
    plain, taught = (make_run(needs, dropout=0.3, total_steps=3) for needs in (frozenset(), frozenset({"teacher"})))
    taught.objective.looks = False
    for run in (plain, taught):
        torch.manual_seed(5)
        worker.fit(run)
    assert torch.equal(plain.encoder.text.weight, taught.encoder.text.weight)
    assert taught.encoder.training
    assert not taught.teacher.encoder.training


def test_a_variant_without_a_sentence_leaves_a_trace_in_the_loss_only_if_the_loss_wants_it(
    worker: ModuleType, make_run: Callable[..., Trainer]
) -> None:
    """Truth 0: the objective sees it, and what it masks gets no gradient."""
    run = make_run(frozenset({"variants"}))
    (batch, *_) = run.batches.epoch(0)
    missing = (batch.variant_truth == 0).flatten()
    assert missing.any()
    words = {int(word) for word, is_missing in zip(batch.variants, missing.tolist(), strict=True) if is_missing}
    others = {int(word) for word, is_missing in zip(batch.variants, missing.tolist(), strict=True) if not is_missing}
    worker.fit(run)
    gradient = run.encoder.text.weight.grad
    alone = sorted(words - others - {int(word) for word in batch.captions})
    assert alone
    assert gradient[alone].norm() == 0
    assert gradient[sorted(others)].norm(dim=1).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["whole", "chunks", "accumulated", "no teacher", "queue", "alignment"])
def test_two_processes_are_told_what_one_is(told_to_two: Seen, case: str) -> None:
    first, second = (seen[case] for seen in told_to_two["told_together"])
    assert_same(first["together"]["gradients"], first["alone"]["gradients"])
    assert_same(first["together"]["weights"], first["alone"]["weights"])
    for record, expected in zip(first["together"]["records"], first["alone"]["records"], strict=True):
        assert record == pytest.approx(expected, rel=1e-10)
    for kind in ("gradients", "weights", "teacher"):
        ours, theirs = first["together"][kind], second["together"][kind]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert_same(first["together"]["teacher"], first["alone"]["teacher"])
    assert bool(first["alone"]["teacher"]) == (case != "no teacher")
