import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clapkit.encoders.adaptation import count_trainable
from clapkit.encoders.adapters import add_adapters
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.window_fusion import WindowAttention, equal_weights, weighted_direction
from clapkit.errors import CheckpointError, ConfigError, ShapeError, UnknownNameError
from clapkit.training.grad_cache import Precision, encode
from clapkit.training.optimizer import parameter_groups
from clapkit.types import Batch

# Three clips of three, one and two windows.
IS_WINDOW = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
CPU = Precision(torch.device("cpu"), None)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sounds(*, junk: float = 0.0) -> tuple[Tensor, Tensor]:
    """Waveforms [3, 3, 8000]; ``junk`` is what lies in windows that are not there."""
    waveform = torch.randn(3, 3, 8000, generator=torch.Generator().manual_seed(1))
    waveform[~IS_WINDOW] = junk
    num_samples = torch.where(IS_WINDOW, 8000, 0)
    num_samples[1, 0] = 500
    waveform[1, 0, 500:] = 0
    return waveform, num_samples


def trained_attention(encoder: DualEncoder) -> DualEncoder:
    """The encoder with an attention that has learned to prefer something."""
    encoder.add_window_attention()
    assert encoder.window_attention is not None
    with torch.no_grad():
        encoder.window_attention.score.weight.normal_(0, 5, generator=torch.Generator().manual_seed(2))
    return encoder


def test_weights_are_a_softmax_of_scores_by_hand() -> None:
    attention = WindowAttention(4)  # hidden width 1
    with torch.no_grad():
        attention.hidden.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        attention.hidden.bias.zero_()
        attention.score.weight.fill_(math.log(2) / math.tanh(1))
    windows = torch.eye(4)[None, :3]
    # Scores: log 2 * tanh(1) / tanh(1) = log 2 for the first window, 0 for the others: 2 / 4, 1 / 4, 1 / 4.
    weights = attention(windows, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.25, 0.25]]))
    # Without the third: 2 / 3, 1 / 3.
    torch.testing.assert_close(attention(windows, torch.tensor([[True, True, False]])), torch.tensor([[2 / 3, 1 / 3, 0.0]]))
    # (0.5, 0.25, 0.25) has the length sqrt(0.375).
    torch.testing.assert_close(weighted_direction(windows, weights), torch.tensor([[0.5, 0.25, 0.25, 0]]) / math.sqrt(0.375))


def test_equal_weights_are_those_of_the_windows_that_are_there() -> None:
    expected = torch.tensor([[1 / 3] * 3, [1.0, 0, 0], [0.5, 0.5, 0]])
    torch.testing.assert_close(equal_weights(IS_WINDOW), expected)


def test_the_mean_is_that_of_windows_that_were_embedded_alone(tiny_encoder: DualEncoder) -> None:
    waveform, num_samples = sounds()
    fused = tiny_encoder.encode_audio(waveform, num_samples)
    for clip in range(3):
        alone = [
            tiny_encoder.encode_audio(waveform[clip, w : w + 1], num_samples[clip, w : w + 1])[0]
            for w in range(3)
            if IS_WINDOW[clip, w]
        ]
        torch.testing.assert_close(fused[clip], normalize(torch.stack(alone).mean(dim=0), dim=0), atol=1e-6, rtol=0)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(3))


def test_an_attention_starts_as_the_mean(tiny_encoder: DualEncoder) -> None:
    before = tiny_encoder.encode_audio(*sounds())
    assert tiny_encoder.fusion == "mean"
    tiny_encoder.add_window_attention()
    assert tiny_encoder.fusion == "attention"
    torch.testing.assert_close(tiny_encoder.encode_audio(*sounds()), before, atol=1e-6, rtol=0)


def test_windows_that_are_kept_are_those_that_are_fused(tiny_encoder: DualEncoder) -> None:
    encoder = trained_attention(tiny_encoder)
    windows = encoder.encode_audio(*sounds(), keep_windows=True)
    assert windows.shape == (3, 3, 16)
    torch.testing.assert_close(windows.norm(dim=2), IS_WINDOW.float())
    assert torch.equal(encoder.fuse_windows(windows, IS_WINDOW), encoder.encode_audio(*sounds()))
    assert torch.equal(encoder(*sounds(), ["a", "b"], keep_windows=True)[0], windows)
    others = unit(3, 3, 16)  # untrained towers make nearly the same of every noise
    assert not torch.allclose(encoder.fuse_windows(others, IS_WINDOW), normalize(others.sum(dim=1), dim=1), atol=0.1)


@pytest.mark.parametrize("fusion", ["mean", "attention"])
def test_neither_order_nor_padding_nor_other_clips_matter(tiny_encoder: DualEncoder, fusion: str) -> None:
    encoder = trained_attention(tiny_encoder) if fusion == "attention" else tiny_encoder
    waveform, num_samples = sounds()
    expected = encoder.encode_audio(waveform, num_samples)
    assert torch.equal(encoder.encode_audio(*sounds(junk=7.0)), expected)  # of windows that are not there
    turned = [2, 0, 1]
    others, is_there = unit(3, 3, 16), IS_WINDOW[:, turned]
    fused = encoder.fuse_windows(others, IS_WINDOW)
    torch.testing.assert_close(encoder.fuse_windows(others[:, turned], is_there), fused)
    torch.testing.assert_close(encoder.fuse_windows(others.masked_fill(~IS_WINDOW[:, :, None], 0), IS_WINDOW), fused)
    torch.testing.assert_close(encoder.encode_audio(waveform[:, turned], num_samples[:, turned]), expected, atol=1e-6, rtol=0)
    wider = torch.cat([waveform, torch.zeros(3, 2, 8000)], dim=1), torch.cat([num_samples, num_samples.new_zeros(3, 2)], dim=1)
    torch.testing.assert_close(encoder.encode_audio(*wider), expected, atol=1e-6, rtol=0)
    for clip in range(3):
        alone = encoder.encode_audio(waveform[clip : clip + 1], num_samples[clip : clip + 1])
        torch.testing.assert_close(alone[0], expected[clip], atol=1e-6, rtol=0)


def test_only_windows_that_are_there_reach_the_tower(tiny_encoder: DualEncoder) -> None:
    seen: list[tuple[int, ...]] = []
    tiny_encoder.audio_tower.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    tiny_encoder.encode_audio(*sounds())
    assert seen == [(6, 8000)]  # one call for 3 + 1 + 2 windows


def test_one_window_is_the_plain_embedding_whatever_fuses(tiny_encoder: DualEncoder) -> None:
    encoder = trained_attention(tiny_encoder)
    waveform, num_samples = sounds()
    plain = encoder.encode_audio(waveform[:, 0], num_samples[:, 0])
    torch.testing.assert_close(encoder.encode_audio(waveform[:, :1], num_samples[:, :1]), plain, atol=1e-6, rtol=0)


def test_attention_has_a_place_in_the_saved_model(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path / "mean")
    assert "fusion" not in json.loads((tmp_path / "mean" / "config.json").read_text())
    assert DualEncoder.load(tmp_path / "mean").fusion == "mean"
    encoder = trained_attention(tiny_encoder)
    encoder.save(tmp_path / "attention")
    assert json.loads((tmp_path / "attention" / "config.json").read_text())["fusion"] == "attention"
    again = DualEncoder.load(tmp_path / "attention")
    assert torch.equal(again.encode_audio(*sounds()), encoder.encode_audio(*sounds()))
    again.add_window_attention()  # it has learned already: nothing is drawn anew
    assert torch.equal(again.encode_audio(*sounds()), encoder.encode_audio(*sounds()))
    (tmp_path / "attention" / "model.safetensors").write_bytes((tmp_path / "mean" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="3 tensors do not fit the configuration, first 'window_attention.hidden.bias'"):
        DualEncoder.load(tmp_path / "attention")


def test_a_model_may_be_made_with_it_and_without_it_nothing_more_is_drawn() -> None:
    def make(**fusion: str) -> DualEncoder:
        torch.manual_seed(3)
        return DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": ["a tone"]}, **fusion)  # type: ignore[arg-type]

    plain, attentive = make(), make(fusion="attention")
    assert attentive.fusion == attentive.config["fusion"] == "attention"
    assert make(fusion="mean").state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(attentive.state_dict()[name], tensor)
    with pytest.raises(UnknownNameError, match="fusion 'max'"):
        make(fusion="max")


def test_it_is_trained_whatever_of_the_towers_is(tiny_encoder: DualEncoder) -> None:
    tiny_encoder.add_window_attention()
    tiny_encoder.train().freeze("audio")
    names = [name for name, _ in tiny_encoder.named_parameters() if name.startswith("window_attention.")]
    assert len(names) == 3
    assert tiny_encoder.window_attention is not None
    assert all(p.requires_grad for p in tiny_encoder.window_attention.parameters())
    groups = parameter_groups(tiny_encoder, lr=1.0, weight_decay=0.1)
    decayed, free = ({id(p) for p in group["params"]} for group in groups)
    assert id(tiny_encoder.window_attention.hidden.weight) in decayed
    assert id(tiny_encoder.window_attention.hidden.bias) in free
    trained = count_trainable(tiny_encoder)
    tiny_encoder.encode_audio(*sounds())[:, 0].sum().backward()
    assert tiny_encoder.window_attention.score.weight.grad is not None
    assert tiny_encoder.window_attention.score.weight.grad.abs().max() > 0
    assert trained == count_trainable(tiny_encoder)


def test_its_learning_rate_is_that_of_the_heads() -> None:
    torch.manual_seed(0)
    options = {"captions": ["a dog barks"], "vocab_size": 300}
    encoder = DualEncoder("tiny", "small", embedding_dim=8, text_options=options, fusion="attention")
    encoder.freeze("audio")
    scales = encoder.learning_rate_scales(0.5)
    assert {scales[name] for name in scales if name.startswith("window_attention.")} == {1.0}
    groups = parameter_groups(encoder, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    assert {id(p) for p in encoder.parameters() if p.requires_grad} == {id(p) for g in groups for p in g["params"]}


@pytest.mark.slow
def test_adapters_leave_it_trained_and_saved(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    options = {"captions": ["a dog barks"], "vocab_size": 300}
    encoder = DualEncoder("tiny", "small", embedding_dim=8, text_options=options, fusion="attention")
    add_adapters(encoder, "text", rank=2)
    assert encoder.window_attention is not None
    assert all(p.requires_grad for p in encoder.window_attention.parameters())
    encoder.eval().save(tmp_path)
    again = DualEncoder.load(tmp_path)
    torch.testing.assert_close(again.encode_audio(*sounds()), encoder.encode_audio(*sounds()))


@pytest.mark.parametrize("form", [{}, {"keep_windows": True}])
def test_gradients_in_chunks_of_clips_are_those_of_the_whole_batch(tiny_encoder: DualEncoder, form: dict[str, bool]) -> None:
    encoder = trained_attention(tiny_encoder)  # in evaluation: batch norm and dropout know no chunks
    waveform, num_samples = sounds()
    keys = torch.tensor([[1], [2], [3]])
    batch = Batch(waveform, num_samples, ["a", "b", "c"], torch.arange(3), keys, keys, torch.arange(3))
    gradients = []
    for chunk in (None, 1, 2):
        encoder.zero_grad()
        encoding = encode(encoder, batch, precision=CPU, chunk=chunk, **form)
        assert encoding.audio.shape == ((3, 3, 16) if form else (3, 16))
        encoding.backward(unit(*encoding.audio.shape, seed=5), unit(3, 16, seed=6))
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    if not form:
        assert gradients[0]["window_attention.score.weight"].abs().max() > 0
    for found in gradients[1:]:
        assert found.keys() == gradients[0].keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[0][name], atol=1e-5, rtol=1e-4)


def test_weights_are_computed_in_float32_under_autocast(tiny_encoder: DualEncoder) -> None:
    encoder = trained_attention(tiny_encoder)
    windows = unit(3, 3, 16)
    expected = encoder.fuse_windows(windows, IS_WINDOW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.fuse_windows(windows, IS_WINDOW), expected)
    assert expected.dtype == torch.float32


def test_what_cannot_be_is_refused(tiny_encoder: DualEncoder) -> None:
    waveform, num_samples = sounds()
    with pytest.raises(ConfigError, match="--windows: the objective looks at embeddings before they have unit norm"):
        tiny_encoder.encode_audio(waveform, num_samples, features=True)
    with pytest.raises(ConfigError, match="--windows: the objective compares captions with several windows"):
        tiny_encoder.encode_audio(waveform[:, 0], num_samples[:, 0], keep_windows=True)
    with pytest.raises(ShapeError, match=r"waveform is \[3, 3, 8000\] and num_samples \[3\]; expected"):
        tiny_encoder.encode_audio(waveform, num_samples[:, 0])
    num_samples[1] = 0
    with pytest.raises(ShapeError, match="num_samples: clip 1 of the batch has no window"):
        tiny_encoder.encode_audio(waveform, num_samples)
