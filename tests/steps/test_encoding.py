import numpy as np
import pytest
import torch

from clapkit.steps.embed_windows import DecodedWindow
from clapkit.steps.encoding import WindowBatch, autocast
from clapkit.types import AudioSpec


class Recorder:
    """Keeps what it was given; embeds a waveform by its first two samples."""

    audio_spec = AudioSpec(sample_rate=4, window_s=2.0)
    embedding_dim = 2

    def __init__(self):
        self.seen = []

    def encode_audio(self, waveform, num_samples):
        self.seen.append((waveform.clone(), num_samples.tolist()))
        return waveform[:, :2] * 3

    def encode_text(self, captions, languages=None):
        raise AssertionError("no text is encoded here")


def window(*samples, start=0):
    return DecodedWindow(start, np.array(samples, dtype=np.float32))


def test_windows_are_padded_and_their_vectors_have_unit_norm():
    model = Recorder()
    batch = WindowBatch(model, size=3, precision="fp32", device="cpu")
    assert batch.add(window(3, 4, 5, start=8), offset_s=1.5) == (3.5, 4.25)  # 8 and 11 samples of 0.25 s behind 1.5 s
    batch.add(window(*range(1, 9)), offset_s=0.0)
    assert (len(batch), batch.is_full) == (2, False)
    vectors = batch.encode()
    waveform, lengths = model.seen[0]
    assert waveform.tolist() == [[3, 4, 5, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert lengths == [3, 8]
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [1 / 5**0.5, 2 / 5**0.5]], atol=1e-7)


def test_nothing_of_one_batch_is_left_in_the_next():
    model = Recorder()
    batch = WindowBatch(model, size=1, precision="fp32", device="cpu")
    batch.add(window(*[7.0] * 8), offset_s=0.0)
    assert batch.is_full
    batch.encode()
    assert len(batch) == 0
    batch.add(window(1, 1), offset_s=0.0)
    batch.encode()
    assert model.seen[1][0].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_encoder_runs_at_the_precision_that_is_asked_for(precision, dtype):
    with autocast(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
