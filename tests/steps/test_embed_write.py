import torch

from clapkit.steps.embed_write import FullBatches


def test_windows_come_out_the_same_whatever_the_number_that_is_left(model):
    draw = torch.Generator().manual_seed(0)
    waveform = torch.randn(8, model.audio_spec.window_samples, generator=draw)
    num_samples = torch.tensor([waveform.shape[1]] * 7 + [4000])
    encoder = FullBatches(model, 8)
    with torch.inference_mode():
        whole = encoder.encode_audio(waveform, num_samples)
        for count in range(1, 9):
            assert torch.equal(encoder.encode_audio(waveform[-count:], num_samples[-count:]), whole[-count:])


def test_a_batch_has_its_size(model):
    sizes = []

    class Counting:
        audio_spec, embedding_dim = model.audio_spec, model.embedding_dim

        def encode_audio(self, waveform, num_samples):
            sizes.append(len(waveform))
            return model.encode_audio(waveform, num_samples)

        def encode_text(self, captions, languages=None):
            return model.encode_text(captions, languages)

    encoder = FullBatches(Counting(), 4)
    assert encoder.encode_audio(torch.randn(3, 8000), torch.full((3,), 8000)).shape == (3, 16)
    assert sizes == [4]
    assert (encoder.audio_spec, encoder.embedding_dim) == (model.audio_spec, 16)
    assert torch.equal(encoder.encode_text(["a dog is heard"]), model.encode_text(["a dog is heard"]))


def test_windows_of_a_clip_are_fused_by_the_model(model, attentive):
    assert FullBatches(model, 8).fusion == "mean"
    encoder = FullBatches(attentive, 8)
    windows = torch.nn.functional.normalize(torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0)), dim=2)
    is_window = torch.ones(1, 3, dtype=torch.bool)
    assert encoder.fusion == "attention"
    assert torch.equal(encoder.fuse_windows(windows, is_window), attentive.fuse_windows(windows, is_window))
