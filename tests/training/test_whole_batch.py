from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from clapkit import registry
from clapkit.training.distributed import OneProcess
from clapkit.training.grad_cache import Encoding
from clapkit.training.whole_batch import gather_batch, gradient_of_own_rows, sum_gradients

Seen = dict[str, list[dict[str, Any]]]
FORMS = [
    *registry.names("loss"),
    *("infonce targets=soft", "svr radius=static", "svr base=siglip", "infonce schedule=mmts"),
    *("infonce targets=ot", "svr targets=ot", "alip wrapped=svr"),
    *("mochi start=0.0", "m3col mix_until=0.0", "sogclr individual=True"),
]
EXACT = 1e-12  # float64


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = EXACT) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def test_every_loss_is_looked_at(two_processes: Seen) -> None:
    assert set(two_processes["losses"][0]) == set(FORMS)


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_have_loss_and_gradients_of_one(two_processes: Seen, form: str) -> None:
    first, second = (seen[form] for seen in two_processes["losses"])
    assert_same(first["together"]["gradients"], first["alone"]["gradients"])
    assert any(name.startswith("encoder.text") for name in first["alone"]["gradients"])
    assert all(gradient.norm() > 0 for name, gradient in first["alone"]["gradients"].items() if name.startswith("encoder"))
    assert_same(first["together"]["weights"], first["alone"]["weights"])
    for record, expected in zip(first["together"]["records"], first["alone"]["records"], strict=True):
        assert record == pytest.approx(expected, rel=1e-10)
    # What one process holds, all hold, bit for bit; else they would drift apart.
    for kind in ("gradients", "weights"):
        ours, theirs = first["together"][kind], second["together"][kind]
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_there_are_positives_across_the_processes(worker: ModuleType) -> None:
    batch = next(worker.Batches(OneProcess()).epoch(0))
    across = batch.positives()[:4, 4:]  # pairs of the one process with those of the other
    assert across.any()
    assert not across.all()


def test_parts_are_true_of_clips_of_the_other_process(worker: ModuleType) -> None:
    batch = next(worker.Batches(OneProcess(), speaks=True).epoch(0))
    parts, true_keys = batch.sentence_keys[:4, 1:], batch.true_keys[4:]
    is_true = (parts[:, :, None, None] == true_keys).any(dim=3) & (parts != 0)[:, :, None]  # [4, V, 4]
    assert is_true.any()
    assert not is_true[parts != 0].all()


def test_what_is_true_of_which_clip_counts_in_the_loss_of_several_processes(two_processes: Seen, worker: ModuleType) -> None:
    """Otherwise the tests of it would compare what is never looked at."""
    seen = two_processes["combined"][0]
    assert_same(seen["parts in chunks"]["together"]["gradients"], seen["parts"]["alone"]["gradients"])
    run = worker.trainer(OneProcess(), two_processes["folder"][0]["path"], form=("compa", {}))
    spoken = run.batches.epoch
    run.batches.epoch = lambda *args, **more: (replace(one, true_keys=None) for one in spoken(*args, **more))
    plain = worker.seen_of(run)["gradients"]["encoder.text.weight"]
    assert not torch.allclose(plain, seen["parts"]["alone"]["gradients"]["encoder.text.weight"])


def test_gathering_without_gradients_and_averaging_would_give_half_of_it(two_processes: Seen) -> None:
    """The factor that a sum of exact parts does not have: 1 / size."""
    seen = two_processes["detached"][0]
    for naive, whole in zip(seen["naive"], seen["whole"], strict=True):
        torch.testing.assert_close(2 * naive, whole, rtol=1e-10, atol=EXACT)
        assert not torch.allclose(naive, whole)


PARTS = ["parts", "parts in chunks"]
WEIGHED = ["weighed", "weighed in chunks", "weighed and accumulated"]


@pytest.mark.parametrize("case", ["whole", "chunks", "accumulated", "batch norm", "clipped", "fp16", *WEIGHED, *PARTS])
def test_two_processes_take_the_steps_of_one(two_processes: Seen, case: str) -> None:
    seen = two_processes["combined"][0][case]
    # A bias in front of a batch norm has no gradient but rounding, of which Adam makes steps of a visible size.
    atol = 1e-8 if case == "batch norm" else EXACT
    assert_same(seen["together"]["weights"], seen["alone"]["weights"], atol=atol)
    steps = [record for record in seen["alone"]["records"] if "loss" in record]
    expected = {"accumulated": 3, "batch norm": 4, "clipped": 3, "fp16": 3} | dict.fromkeys(WEIGHED, 3)
    assert len(steps) == expected.get(case, 1)
    for record, expected in zip(seen["together"]["records"], seen["alone"]["records"], strict=True):
        assert record == pytest.approx(expected, rel=1e-9)


def test_a_memory_of_losses_is_written_once_a_step_whoever_shares_it_and_however_it_is_encoded(two_processes: Seen) -> None:
    seen = two_processes["combined"]
    whole = seen[0]["weighed"]["alone"]
    assert any(record.get("mean_weight", 1.0) < 1 for record in seen[0]["weighed and accumulated"]["alone"]["records"])
    for case in ("weighed", "weighed in chunks"):
        assert_same(seen[0][case]["together"]["weights"], whole["weights"])
    # An epoch of three batches: every clip came once with both captions, at 0 (counted as 1 %), 1/3 or 2/3 of the training.
    counted = whole["weights"]["objective.counted"]
    assert counted.unique().tolist() == pytest.approx([0.02, 2 / 3, 4 / 3])
    for case in WEIGHED:  # what one process remembers, all remember, bit for bit
        ours, theirs = (of_one[case]["together"]["weights"] for of_one in seen)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("objective"))


def test_chunks_of_parts_are_the_whole_batch(two_processes: Seen) -> None:
    seen = two_processes["combined"][0]
    assert_same(seen["chunks"]["together"]["gradients"], seen["whole"]["alone"]["gradients"])


def test_one_process_gathers_leaves(worker: ModuleType) -> None:
    batch = next(worker.Batches(OneProcess()).epoch(0))
    graph = torch.randn(4, 3, requires_grad=True) * 2
    whole = gather_batch(batch, Encoding(graph, torch.randn(8, 3), None, print), processes=OneProcess())
    assert whole.audio.is_leaf
    assert whole.audio.requires_grad
    assert whole.text.requires_grad
    assert torch.equal(whole.audio_row, batch.audio_row)
    assert torch.equal(whole.positives, batch.positives())
    assert torch.equal(whole.index, batch.index)
    assert gradient_of_own_rows(whole.audio, processes=OneProcess()) is None
    whole.audio.sum().backward()
    assert torch.equal(gradient_of_own_rows(whole.audio, processes=OneProcess()), torch.ones(4, 3))


def test_a_layer_that_one_process_has_dropped_is_trained_alike_everywhere(two_processes: Seen) -> None:
    first, second = two_processes["together"]
    assert torch.equal(first["rare"], second["rare"])
    assert first["rare"].norm() > 0


def test_a_parameter_that_nobody_has_used_keeps_no_gradient(two_processes: Seen) -> None:
    assert "encoder.rare.weight" not in two_processes["losses"][0]["infonce"]["together"]["gradients"]
    unused = torch.nn.Parameter(torch.ones(2))
    sum_gradients([unused], processes=OneProcess())
    assert unused.grad is None
