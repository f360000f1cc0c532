import copy
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ConfigError
from clapkit.training.distributed import OneProcess
from clapkit.training.grad_cache import Precision, call_encoder, encode
from clapkit.types import Batch

CPU = Precision(torch.device("cpu"), None)


class Towers(nn.Module):
    """Records how many rows each call has seen, and the languages."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.audio, self.text = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), nn.Embedding(50, 4)
        self.dropout = nn.Dropout(dropout)
        self.seen: list[Any] = []

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        self.seen.append(len(waveform))
        assert len(num_samples) == len(waveform)
        return normalize(self.dropout(self.audio(waveform)), dim=1)

    def encode_text(self, captions: list[str], languages: list[str] | None = None) -> Tensor:
        self.seen.append((len(captions), languages))
        return normalize(self.dropout(self.text(torch.tensor([int(caption) for caption in captions]))), dim=1)

    def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str], *more: list[str]) -> tuple[Tensor, Tensor]:
        return self.encode_audio(waveform, num_samples), self.encode_text(captions, *more)


def batch_of(num_clips: int, num_captions: int, **more: Any) -> Batch:
    keys = torch.arange(1, num_captions + 1)[:, None]
    waveform = torch.randn(num_clips, 6, generator=torch.Generator().manual_seed(0))
    captions = [str(number) for number in range(num_captions)]
    row = torch.arange(num_captions) % num_clips
    return Batch(waveform, torch.full((num_clips,), 6), captions, torch.arange(num_captions), keys, keys, row, **more)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize("loss", registry.names("loss"))
def test_chunks_give_the_gradient_of_the_whole_batch(worker: ModuleType, tmp_path: Any, loss: str, chunk: int) -> None:
    def step(chunk: int | None) -> tuple[dict[str, Tensor], dict[str, float]]:
        torch.manual_seed(1)
        run = worker.trainer(OneProcess(), tmp_path, form=(loss, {}), encoder=worker.Encoder(), grad_cache_chunk=chunk)
        (record,) = [record for record in worker.fit(run) if "loss" in record]
        return worker.gradients(run), {k: v for k, v in record.items() if k not in ("clips_per_s", "data_wait_share")}

    found, numbers = step(chunk)
    expected, plain = step(None)  # 4 clips, 8 captions
    assert_same(found, expected)
    assert numbers == pytest.approx(plain, rel=1e-10)


def test_clips_and_captions_are_shared_out_evenly_and_never_exceed_the_chunk() -> None:
    towers = Towers()
    encoding = encode(towers, batch_of(5, 9), precision=CPU, chunk=4)
    # Five clips make two chunks, nine captions three; no single one is left over, which batch norm could not take.
    assert towers.seen == [2, 3, (3, None), (3, None), (3, None)]
    towers.seen.clear()
    encoding.backward(torch.ones(5, 4), torch.ones(9, 4))
    assert towers.seen == [2, 3, (3, None), (3, None), (3, None)]


def test_the_second_pass_draws_what_the_first_one_drew() -> None:
    torch.manual_seed(0)
    towers = Towers(dropout=0.5)
    other, batch = copy.deepcopy(towers), batch_of(6, 6)
    weight = torch.randn(2, 6, 4)

    torch.manual_seed(7)
    parts = [towers.encode_audio(batch.waveform[rows], batch.num_samples[rows]) for rows in (slice(0, 3), slice(3, 6))]
    texts = [towers.encode_text(batch.captions[rows]) for rows in (slice(0, 3), slice(3, 6))]
    expected_state = torch.get_rng_state()
    ((torch.cat(parts) * weight[0]).sum() + (torch.cat(texts) * weight[1]).sum()).backward()

    torch.manual_seed(7)
    encoding = encode(other, batch, precision=CPU, chunk=3)
    assert torch.equal(encoding.audio, torch.cat(parts))
    assert torch.equal(encoding.text, torch.cat(texts))
    encoding.backward(weight[0], weight[1])
    assert_same(gradients(other), gradients(towers), atol=1e-6)
    # What is drawn next does not depend on the second pass, nor on how far it went.
    assert torch.equal(torch.get_rng_state(), expected_state)
    torch.manual_seed(7)
    encode(other, batch, precision=CPU, chunk=3).backward(weight[0], None)
    assert torch.equal(torch.get_rng_state(), expected_state)


def test_running_statistics_are_taken_up_once() -> None:
    towers = Towers()
    once, batch = copy.deepcopy(towers), batch_of(6, 6)
    for rows in (slice(0, 3), slice(3, 6)):
        once.encode_audio(batch.waveform[rows], batch.num_samples[rows])
    encode(towers, batch, precision=CPU, chunk=3).backward(torch.ones(6, 4), torch.ones(6, 4))
    for name, expected in once.state_dict().items():
        assert torch.equal(towers.state_dict()[name], expected), name
    assert towers.audio[1].num_batches_tracked == 2


@pytest.mark.parametrize("chunk", [None, 2])
def test_embeddings_come_without_a_graph_and_gradients_go_where_one_is(chunk: int | None) -> None:
    towers = Towers()
    towers.text.requires_grad_(False)  # a frozen tower
    encoding = encode(towers, batch_of(4, 4), precision=CPU, chunk=chunk)
    assert not encoding.audio.requires_grad
    assert not encoding.text.requires_grad
    encoding.backward(torch.ones(4, 4), torch.ones(4, 4))
    assert set(gradients(towers)) == {"audio.0.weight", "audio.0.bias", "audio.1.weight", "audio.1.bias"}
    towers.zero_grad()
    encode(towers, batch_of(4, 4), precision=CPU, chunk=chunk).backward(None, torch.ones(4, 4))
    assert gradients(towers) == {}


@pytest.mark.parametrize("chunk", [None, 3])
def test_languages_are_given_where_the_batch_has_them(chunk: int | None) -> None:
    towers = Towers()
    encode(towers, batch_of(4, 4, languages=["en", "de", "fr", "it"]), precision=CPU, chunk=chunk)
    texts = [seen for seen in towers.seen if isinstance(seen, tuple)]
    assert texts == ([(4, ["en", "de", "fr", "it"])] if chunk is None else [(2, ["en", "de"]), (2, ["fr", "it"])])
    towers.seen.clear()
    call_encoder(towers, batch_of(4, 4), torch.device("cpu"))
    assert towers.seen[1] == (4, None)


def test_autocast_chunks_are_close_to_the_whole_batch_and_reach_all_weights(tiny_encoder: DualEncoder) -> None:
    batch = batch_of(6, 6)
    sounds = torch.randn(6, tiny_encoder.audio_spec.window_samples, generator=torch.Generator().manual_seed(1))
    lengths = torch.full((6,), sounds.shape[1])
    batch = replace(batch, waveform=sounds, num_samples=lengths, captions=[f"a tone of {n} hertz" for n in range(6)])
    weight = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    found = []
    for chunk in (None, 4):
        tiny_encoder.zero_grad()
        encoding = encode(tiny_encoder, batch, precision=replace(CPU, dtype=torch.bfloat16), chunk=chunk)
        encoding.backward(weight[0], weight[1])
        found.append({name: gradient.clone() for name, gradient in gradients(tiny_encoder).items()})
    plain, chunked = found
    # A cast weight that was cached in the pass without a graph would be left without a gradient.
    assert chunked.keys() == plain.keys() == dict(tiny_encoder.named_parameters()).keys()
    for name, expected in plain.items():
        assert (chunked[name] - expected).norm() <= 0.02 * expected.norm() + 1e-6, name


def test_a_tower_whose_draws_cannot_be_repeated_is_refused() -> None:
    towers, own = Towers(), torch.Generator().manual_seed(0)
    towers.dropout = nn.Module()
    towers.dropout.forward = lambda x: x * (torch.rand(x.shape, generator=own) > 0.1)  # type: ignore[method-assign]
    encoding = encode(towers, batch_of(6, 6), precision=CPU, chunk=3)
    with pytest.raises(ConfigError, match=r"--grad-cache-chunk: embeddings of the second pass differ .* by \d+%, so that"):
        encoding.backward(torch.ones(6, 4), torch.ones(6, 4))
    encode(towers, batch_of(6, 6), precision=CPU).backward(torch.ones(6, 4), torch.ones(6, 4))  # one pass repeats nothing


def test_compiled_towers_are_chunked_like_others() -> None:
    torch.manual_seed(0)
    towers, batch = Towers(dropout=0.3), batch_of(6, 6)
    other = copy.deepcopy(towers)
    other.audio.compile(backend="eager")
    for module in (towers, other):
        torch.manual_seed(1)
        encode(module, batch, precision=CPU, chunk=3).backward(torch.ones(6, 4), torch.ones(6, 4))
    assert_same(gradients(other), gradients(towers), atol=1e-6)
    assert other.audio[1].num_batches_tracked == 2
