import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clapkit.encoders.adaptation import compile_towers
from clapkit.encoders.adapters import add_adapters
from clapkit.encoders.dual import DualEncoder
from clapkit.training.batch_norm import batch_norm_in_training, synchronise_batch_norm
from clapkit.training.distributed import TorchProcesses
from clapkit.training.grad_cache import Precision, call_encoder
from clapkit.training.teacher import Teacher
from clapkit.types import Batch

CPU = Precision(torch.device("cpu"), None)


def batch_of(encoder: DualEncoder, num_clips: int = 4, **more: Any) -> Batch:
    """As many captions as clips."""
    length = encoder.audio_spec.window_samples
    keys = torch.arange(1, num_clips + 1)[:, None]
    return Batch(
        waveform=torch.randn(num_clips, length, generator=torch.Generator().manual_seed(1)),
        num_samples=torch.full((num_clips,), length),
        captions=[f"a tone of {200 + 150 * number} hertz" for number in range(num_clips)],
        index=torch.arange(num_clips),
        text_keys=keys,
        clip_keys=keys,
        audio_row=torch.arange(num_clips),
        **more,
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def train_a_step(encoder: DualEncoder, *, lr: float = 0.1) -> None:
    """Move every weight that is trained, and the running statistics."""
    encoder.train()
    audio, text = call_encoder(encoder, batch_of(encoder), CPU.device)
    (audio * text).sum().backward()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
                parameter.grad = None


@pytest.fixture
def make_encoder() -> Callable[[], DualEncoder]:
    """Two of them are equal; batch norm and dropout, in training."""

    def make() -> DualEncoder:
        torch.manual_seed(0)
        captions = [f"a tone of {200 + 150 * number} hertz" for number in range(16)]
        return DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": captions}).train()

    return make


def test_a_frozen_teacher_stays_the_encoder_of_the_start(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder = make_encoder()
    teacher, start = Teacher(encoder, momentum=None), weights(encoder)
    before = teacher.embed(batch_of(encoder), precision=CPU)
    train_a_step(encoder)
    teacher.follow(encoder)
    assert all(torch.equal(tensor, start[name]) for name, tensor in teacher.encoder.state_dict().items())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in encoder.state_dict().items())
    after = teacher.embed(batch_of(encoder), precision=CPU)
    assert all(torch.equal(found, expected) for found, expected in zip(after, before, strict=True))


def test_it_embeds_as_the_encoder_does_in_evaluation_and_without_drawing(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder, state = make_encoder(), torch.get_rng_state()
    teacher = Teacher(encoder, momentum=0.9)
    batch = batch_of(encoder)
    audio, text = teacher.embed(batch, precision=CPU)
    assert torch.equal(torch.get_rng_state(), state)
    encoder.eval()
    with torch.no_grad():
        expected = call_encoder(encoder, batch, CPU.device)
    # Weights that ask for no gradient may be given to other kernels, which round differently.
    torch.testing.assert_close(audio, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text, expected[1], rtol=1e-5, atol=1e-6)
    assert not audio.requires_grad
    assert not text.requires_grad


def test_nothing_of_it_is_trained_and_no_batch_norm_sees_the_batch(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder = make_encoder()
    teacher = Teacher(encoder, momentum=0.9)
    assert batch_norm_in_training(encoder) != [] == batch_norm_in_training(teacher.encoder)
    assert not any(part.training for part in teacher.encoder.modules())
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.training
    before = weights(teacher.encoder)
    teacher.embed(batch_of(encoder), precision=CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.encoder.state_dict().items())


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_embed_like_the_whole_batch(make_encoder: Callable[[], DualEncoder], chunk: int) -> None:
    encoder = make_encoder()
    teacher, batch = Teacher(encoder, momentum=None), batch_of(encoder)
    whole, parts = teacher.embed(batch, precision=CPU), teacher.embed(batch, precision=CPU, chunk=chunk)
    for found, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_variants_are_not_embedded(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder = make_encoder()
    teacher, batch = Teacher(encoder, momentum=None), batch_of(encoder)
    seen: list[int] = []
    teacher.encoder.text_tower.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    more = replace(batch, variants=["not so"] * 8, variant_truth=torch.ones(4, 2, dtype=torch.int8))
    assert torch.equal(teacher.embed(more, precision=CPU)[1], teacher.embed(batch, precision=CPU)[1])
    assert seen == [4, 4]
    assert len(more.variants) == 8


def test_it_follows_as_a_mean_by_hand() -> None:
    encoder = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        encoder.weight.fill_(2.0)
    teacher = Teacher(encoder, momentum=0.75)
    with torch.no_grad():
        encoder.weight.fill_(6.0)
    teacher.follow(encoder)
    assert teacher.encoder.weight.item() == 3.0  # 0.75 * 2 + 0.25 * 6
    teacher.follow(encoder)
    assert teacher.encoder.weight.item() == 3.75  # 0.75 * 3 + 0.25 * 6
    assert encoder.weight.item() == 6.0


@pytest.mark.parametrize(("momentum", "share"), [(0.0, 1.0), (0.9, 0.1), (1.0, 0.0)])
def test_weights_are_averaged_and_statistics_are_taken(
    make_encoder: Callable[[], DualEncoder], momentum: float, share: float
) -> None:
    encoder = make_encoder()
    encoder.audio_head.requires_grad_(False)  # what is not trained stays equal
    teacher, start = Teacher(encoder, momentum=momentum), weights(encoder)
    train_a_step(encoder)
    teacher.follow(encoder)
    now, parameters = weights(encoder), dict(encoder.named_parameters())
    buffers = [name for name in now if name not in parameters]
    assert any("running_mean" in name for name in buffers)
    for name, tensor in teacher.encoder.state_dict().items():
        if name in buffers:
            assert torch.equal(tensor, now[name]), name
        elif not parameters[name].requires_grad or share in (0.0, 1.0):
            assert torch.equal(tensor, now[name] if share == 1.0 else start[name]), name
        else:
            torch.testing.assert_close(tensor, (1 - share) * start[name] + share * now[name])
    assert any(not torch.equal(now[name], start[name]) for name in parameters)


def test_it_does_not_share_memory_with_the_encoder(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder = make_encoder()
    teacher = Teacher(encoder, momentum=0.9)
    ours = {tensor.data_ptr() for tensor in teacher.encoder.state_dict().values() if tensor.numel()}
    assert not ours & {tensor.data_ptr() for tensor in encoder.state_dict().values() if tensor.numel()}
    encoder.freeze("audio")
    encoder.train()
    assert not any(part.training for part in teacher.encoder.modules())


def test_only_a_teacher_that_moves_is_in_the_checkpoint(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder = make_encoder()
    frozen, moving, resumed = (Teacher(encoder, momentum=momentum) for momentum in (None, 0.9, 0.9))
    assert frozen.state_dict() == {}
    train_a_step(encoder)
    moving.follow(encoder)
    state = copy.deepcopy(moving.state_dict())
    resumed.load_state_dict(state)
    frozen.load_state_dict({})
    batch = batch_of(encoder)
    for found, expected in zip(resumed.embed(batch, precision=CPU), moving.embed(batch, precision=CPU), strict=True):
        assert torch.equal(found, expected)
    moved = [not torch.equal(tensor, dict(frozen.encoder.state_dict())[name]) for name, tensor in state.items()]
    assert any(moved)


@pytest.mark.slow
def test_it_follows_adapters(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder = make_encoder()
    add_adapters(encoder, "text", rank=2)
    teacher, start = Teacher(encoder, momentum=0.5), weights(encoder)
    for _ in range(2):  # the first one only moves B, which starts at 0
        train_a_step(encoder, lr=1.0)
    teacher.follow(encoder)
    now = weights(encoder)
    adapters = [name for name in now if ".lora_" in name]
    assert adapters
    for name in adapters:
        torch.testing.assert_close(teacher.encoder.state_dict()[name], (start[name] + now[name]) / 2)
    frozen = [name for name in now if "text_tower" in name and ".lora_" not in name]
    assert all(torch.equal(teacher.encoder.state_dict()[name], start[name]) for name in frozen)
    batch = batch_of(encoder)
    plain = Teacher(make_encoder(), momentum=None)
    assert not torch.allclose(teacher.embed(batch, precision=CPU)[1], plain.embed(batch, precision=CPU)[1])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_of_a_compiled_encoder_it_is_a_copy_that_is_not_compiled(make_encoder: Callable[[], DualEncoder]) -> None:
    encoder, plain = make_encoder(), make_encoder()
    compile_towers(encoder, backend="eager")
    teacher, expected = Teacher(encoder, momentum=0.9), Teacher(plain, momentum=0.9)
    batch = batch_of(encoder)
    torch._dynamo.utils.counters.clear()
    for found, wanted in zip(teacher.embed(batch, precision=CPU), expected.embed(batch, precision=CPU), strict=True):
        assert torch.equal(found, wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    assert list(teacher.state_dict()) == list(expected.state_dict())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    teacher.follow(encoder)
    name, parameter = next(iter(teacher.encoder.named_parameters()))
    torch.testing.assert_close(parameter, dict(plain.named_parameters())[name] + 0.1)


def test_a_batch_norm_over_processes_can_be_copied(
    make_encoder: Callable[[], DualEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    processes, encoder = TorchProcesses(torch.device("cpu")), make_encoder()
    plain = Teacher(encoder, momentum=None)
    synchronise_batch_norm(encoder, processes)
    teacher = Teacher(encoder, momentum=0.9)
    owners = {part.processes for part in teacher.encoder.modules() if hasattr(part, "processes")}
    assert owners == {processes}
    # In evaluation nothing is exchanged: here there is nobody to exchange with.
    for found, expected in zip(*(each.embed(batch_of(encoder), precision=CPU) for each in (teacher, plain)), strict=True):
        assert torch.equal(found, expected)


def test_autocast_embeddings_come_without_a_graph_and_leave_the_weights_in_float32(
    make_encoder: Callable[[], DualEncoder],
) -> None:
    encoder = make_encoder()
    teacher, batch = Teacher(encoder, momentum=0.9), batch_of(encoder)
    exact = teacher.embed(batch, precision=CPU)
    found = teacher.embed(batch, precision=replace(CPU, dtype=torch.bfloat16))
    for half, single in zip(found, exact, strict=True):
        assert ((half - single).norm(dim=1) < 0.05).all()
    assert all(p.dtype == torch.float32 for p in teacher.encoder.parameters())
