"""What needs a GPU, off by default: ``python -m pytest -m gpu tests/test_gpu.py -n 0``. One CUDA device is enough.

Several GPUs are not covered: of nccl only what one process can ask of it is tested.
"""

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from typer.testing import Result

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.run_dir import RunDir
from clapkit.steps import inputs, train, train_drift
from clapkit.steps.embedding import embed_clips, embed_texts
from clapkit.training import checkpoint
from clapkit.training.distributed import TorchProcesses, leave
from clapkit.training.grad_cache import Precision, encode
from clapkit.training.loop import Trainer
from clapkit.types import Batch, SilentReporter
from tests.steps.test_train_combinations import COMBINATIONS, SVR_MMTS, log_of, name_of, start, weights
from tests.test_plugins import FORMS, make_loss, pairs, score

pytestmark = pytest.mark.gpu

CUDA = "cuda"
SVR = {"loss": "svr", "radius": "adaptive"}
CAPTIONS = ["a dog barks", "rain falls on a roof, then a bell rings twice", "someone speaks", "an engine starts", "waves"]


@pytest.fixture(scope="module", autouse=True)
def _repeatable_products() -> Iterator[None]:
    """cuBLAS reads this when it is first used; without it, it may add up in another order every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        yield


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_drift, "BANK_PAIRS", 8)
    monkeypatch.setattr(train, "plot_run", lambda run_dir: None)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that add up in one order, or an error where there is none."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def losses(run: RunDir) -> list[float]:
    return [record["loss"] for record in log_of(run) if "loss" in record]


# Objectives -------------------------------------------------------------------------------------------------------------


def scored(loss: torch.nn.Module, device: str) -> dict[str, torch.Tensor]:
    """Value and gradients of a copy of a loss on a device, moved back."""
    loss = copy.deepcopy(loss).to(device)
    audio, text = (x.detach().to(device).requires_grad_() for x in pairs())
    positives = torch.eye(len(audio), dtype=torch.bool, device=device)
    positives[0, 3] = positives[3, 0] = True
    output = score(loss, audio, text, positives, torch.arange(len(audio), device=device))
    output.total.backward()
    found = {"total": output.total, "audio": audio.grad, "text": text.grad}
    found |= {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_a_loss_is_what_it_is_on_the_processor(name: str, options: dict[str, Any]) -> None:
    loss = make_loss(name, options)
    here, there = scored(loss, "cpu"), scored(loss, CUDA)
    assert here.keys() == there.keys()
    for key, expected in here.items():
        # Entries that nearly cancel have no relative accuracy: the largest ones say what rounding is.
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(there[key], expected, rtol=1e-4, atol=atol, msg=lambda text, key=key: f"{key}: {text}")


# Training ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("towers", ["tiny", "light"])
def test_it_trains_and_validates_in_every_precision(towers: str, precision: str, tones: Path, tmp_path: Path) -> None:
    run = start(
        tmp_path, tones, "run", device=CUDA, precision=precision, audio_encoder=towers, text_encoder=towers, eval_every=1, **SVR
    )
    assert len(losses(run)) == 10
    assert all(math.isfinite(loss) for loss in losses(run))
    assert [record["step"] for record in log_of(run) if "t2a_R@1" in record] == [0, 4, 8, 10]
    result = json.loads((run.path / "result.json").read_text())
    assert result["peak_memory_mib"] > 0
    assert run.record["device"] == CUDA
    assert all(bool(torch.isfinite(tensor).all()) for tensor in DualEncoder.load(run.model_dir).state_dict().values())


def test_a_gpu_is_taken_where_nothing_is_said(tones: Path, tmp_path: Path) -> None:
    assert start(tmp_path, tones, "run", max_steps=1).record["device"] == CUDA


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_what_can_be_combined_trains_and_is_measured(options: dict[str, Any], tones: Path, tmp_path: Path) -> None:
    # Measuring takes as long as training, and the last six have everything in them.
    diagnostics = 6 if options in COMBINATIONS[-6:] else None
    run = start(tmp_path, tones, "run", **({"device": CUDA, "precision": "bf16", "diagnostics": diagnostics} | options))
    assert len(losses(run)) == 10
    assert all(math.isfinite(loss) for loss in losses(run))
    assert [record["step"] for record in log_of(run) if "step_cos" in record] == ([1, 6] if diagnostics else [])


@pytest.mark.parametrize("towers", ["small", "light"])
@pytest.mark.parametrize("options", [SVR, SVR_MMTS | {"precision": "bf16"}, {"precision": "fp16"}], ids=name_of)
def test_a_cut_run_resumes_to_the_same_weights(
    deterministic: None, options: dict[str, Any], towers: str, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, dropout and augmentation included, with kernels that repeat; others differ by rounding, see below."""
    given = {"device": CUDA, "audio_encoder": towers, "text_encoder": towers, "save_every": 3} | options
    whole = start(tmp_path, tones, "whole", **given)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop_after(Trainer.save))
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, tones, "cut", **given)
    assert len(losses(RunDir(tmp_path / "cut"))) == 3
    cut = start(tmp_path, tones, "cut", resume=True, **given)
    assert losses(cut) == losses(whole)
    assert weights(cut) == weights(whole)


def test_a_cut_run_goes_on_as_it_would_have_with_the_kernels_that_users_get(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some kernels add up with atomics, in an order of their own: two runs of one seed differ by rounding, which grows.
    given = {"device": CUDA, "audio_encoder": "small", "text_encoder": "small", "max_steps": 7, "save_every": 3}
    whole = start(tmp_path, tones, "whole", **given)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop_after(Trainer.save))
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, tones, "cut", **given)
    assert losses(start(tmp_path, tones, "cut", resume=True, **given)) == pytest.approx(losses(whole), rel=0.02)


def stop_after(save: Callable[[Trainer], None]) -> Callable[[Trainer], None]:
    """A save that is the last thing its process does."""

    def save_and_stop(trainer: Trainer) -> None:
        save(trainer)
        raise KeyboardInterrupt

    return save_and_stop


def test_a_checkpoint_brings_back_the_generators_of_the_gpu(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    torch.randn(3, device=CUDA)
    state = {"generators": checkpoint.generator_state()}
    checkpoint.save_checkpoint(tmp_path / "last", encoder=module, objective=module, state=state)
    expected = torch.randn(5, device=CUDA), torch.randn(5)
    torch.manual_seed(99)
    loaded = checkpoint.load_checkpoint(tmp_path / "last", encoder=module, objective=module)
    checkpoint.restore_generators(loaded["generators"])
    assert torch.equal(torch.randn(5, device=CUDA), expected[0])
    assert torch.equal(torch.randn(5), expected[1])


def test_a_run_of_the_gpu_goes_on_with_its_checkpoint_on_the_processor(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop_after(Trainer.save))
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, tones, "run", device=CUDA, max_steps=6, save_every=3, **SVR)
    folder = tmp_path / "run" / "checkpoints" / "last"
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    assert state["progress"]["step"] == 3
    assert all(t.device.type == "cpu" for s in state["optimizer"]["state"].values() for t in s.values())


# Towers -----------------------------------------------------------------------------------------------------------------


def towers_on_gpu(name: str, *, training: bool) -> tuple[DualEncoder, Batch]:
    """Towers and a batch of five noises with their captions."""
    torch.manual_seed(0)
    encoder = DualEncoder(name, name, embedding_dim=16, text_options={"captions": CAPTIONS}).to(CUDA).train(training)
    length, keys, rows = encoder.audio_spec.window_samples, torch.arange(1, 6)[:, None], torch.arange(5)
    batch = Batch(0.1 * torch.randn(5, length), torch.full((5,), length), CAPTIONS, rows, keys, keys, rows)
    return encoder, replace(batch, num_samples=torch.tensor([length, length // 2, length, 100, length - 1]))


@pytest.mark.parametrize("name", ["tiny", "small", "light"])
def test_chunks_give_the_gradient_of_the_whole_batch(name: str) -> None:
    found = []
    for chunk in (None, 2):
        encoder, batch = towers_on_gpu(name, training=False)
        # cuDNN has no gradient for recurrent layers in evaluation mode, and its rounding (TF32) depends on the chunk.
        with torch.backends.cudnn.flags(enabled=False):
            encoding = encode(encoder, batch, precision=Precision(torch.device(CUDA), None), chunk=chunk)
            drawn = torch.Generator().manual_seed(1)
            encoding.backward(*(torch.randn(5, 16, generator=drawn).to(CUDA) for _ in range(2)))
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    scale = max(float(gradient.norm()) for gradient in found[0])
    for whole, chunked in zip(*found, strict=True):
        assert float((whole - chunked).norm()) < 1e-3 * float(whole.norm()) + 1e-6 * scale


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("towers", ["small", "light"])
def test_cached_gradients_draw_the_same_twice(towers: str, precision: str, tones: Path, tmp_path: Path) -> None:
    # The loop refuses rows whose second pass differs by more than rounding: dropout and masks are drawn again as they were.
    options = {"audio_encoder": towers, "text_encoder": towers, "grad_cache_chunk": 2, "options": ("mask=true",)}
    run = start(tmp_path, tones, "run", device=CUDA, precision=precision, max_steps=4, **options)
    assert all(math.isfinite(loss) for loss in losses(run))


def embedded(model: Any, data: Manifest, device: str, precision: Any) -> np.ndarray:
    settings: dict[str, Any] = {"reporter": SilentReporter(), "device": device, "precision": precision, "batch_size": 4}
    clips = embed_clips(model, data, hop_s=0.5, pool="none", workers=1, **settings).vectors
    return np.concatenate([clips, embed_texts(model, CAPTIONS, **settings)])


@pytest.mark.parametrize(("precision", "lowest"), [("fp32", 0.9999), ("bf16", 0.99), ("fp16", 0.999)])
@pytest.mark.parametrize("name", ["tiny", "small", "light", "clap"])
def test_embeddings_are_those_of_the_processor(
    name: str, precision: str, lowest: float, tones: Path, tmp_path: Path, clap_folder: Path
) -> None:
    folder = clap_folder
    if name != "clap":
        encoder, _ = towers_on_gpu(name, training=False)
        encoder.save(folder := tmp_path / "model")
    data = Manifest.load(tones)
    here = embedded(inputs.load_model(folder, device="cpu"), data, "cpu", "fp32")
    there = embedded(inputs.load_model(folder, device=CUDA), data, CUDA, precision)
    assert (here * there).sum(axis=1).min() > lowest


@pytest.mark.parametrize("adaptation", [{}, {"lora": "both", "lora_rank": 2}, {"grad_checkpointing": True}], ids=str)
def test_a_clap_folder_is_fine_tuned(adaptation: dict[str, Any], tones: Path, tmp_path: Path, clap_folder: Path) -> None:
    given = {"init": str(clap_folder), "device": CUDA, "precision": "bf16", "max_steps": 3, "lr": 1e-4}
    config = {"audio_encoder": "small", "text_encoder": "small", "embedding_dim": 512}  # defaults: the folder brings its own
    run = start(tmp_path, tones, "run", **given, **config, **adaptation)
    assert all(math.isfinite(loss) for loss in losses(run))


# torch.compile says a lot that is not about us, such as how its own libraries start processes.
@pytest.mark.filterwarnings("default")
def test_compiled_towers_train_as_others_do_and_load_without_compile(tones: Path, tmp_path: Path) -> None:
    # Nothing is drawn: compiled code has draws of its own.
    options = ("text.dropout=0.0", "audio.augment=false")
    given = {"device": CUDA, "audio_encoder": "small", "text_encoder": "small", "max_steps": 4, "options": options}
    plain, compiled = (start(tmp_path, tones, f"{on}", compile=on, **given) for on in (False, True))
    assert losses(compiled) == pytest.approx(losses(plain), rel=0.02)
    one, other = (DualEncoder.load(run.model_dir) for run in (plain, compiled))
    assert one.state_dict().keys() == other.state_dict().keys()
    cosines = functional.cosine_similarity(one.encode_text(CAPTIONS), other.encode_text(CAPTIONS))
    assert cosines.min() > 0.99


# From end to end --------------------------------------------------------------------------------------------------------


def test_every_command_runs_on_the_gpu(
    clapkit_call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLAPKIT_CACHE", str(tmp_path / "cache"))
    on_gpu = ("--device", CUDA, "--json")
    small = ("--epochs", "1", "--precision", "bf16", "--batch-size", "16")
    for command in (
        ("prepare", "synth", "-O", "num_clips=60", "--workers", "4", "--json"),
        ("train", *small, "--loss", "dbpm", "-O", "warmup=0.1", *on_gpu),
        ("embed", "--precision", "fp16", *on_gpu),
        ("retrieve", "a dog barking", *on_gpu),
        ("eval", "--bootstrap", "50", *on_gpu),
    ):
        result = clapkit_call(*command)
        assert result.exit_code == 0, f"{command[0]}: {result.stderr}"
        assert isinstance(json.loads(result.stdout), dict)


# Processes --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_nccl_carries_everything_that_processes_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one process only: what travels comes back; that several agree has not been seen on GPUs."""
    import torch.distributed as dist

    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    device = torch.device(CUDA, 0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        processes = TorchProcesses(device)
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            for place in ("cpu", CUDA):
                rows = torch.arange(6, device=place).reshape(3, 2).to(dtype)
                assert torch.equal(processes.gather(rows), rows)
                assert processes.gather(rows).device == rows.device
        tensors = [torch.ones(3, device=CUDA), torch.ones(2, dtype=torch.bfloat16, device=CUDA), torch.ones(1)]
        for exchange in (processes.sum_, processes.mean_, processes.copy_):
            exchange(tensors)
            assert all(bool((tensor == 1).all()) for tensor in tensors)
        assert processes.broadcast({"name": "x"}) == {"name": "x"}
        assert processes.gather_values(os.getpid()) == [os.getpid()]
        assert processes.any(True)
        assert not processes.any(False)
    finally:
        leave()
