from types import SimpleNamespace

import pytest
import torch

from clapkit.encoders.audio._pooling import grouped_mean, mean_of_real, num_encoder_frames, num_samples_of_a_frame

CONVOLUTIONS = SimpleNamespace(conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2))


def test_the_mean_leaves_out_what_is_not_real():
    frames = torch.tensor([[[1.0], [3.0], [100.0]], [[4.0], [5.0], [6.0]]])
    assert mean_of_real(frames, torch.tensor([2, 3])).tolist() == [[2.0], [5.0]]


@pytest.mark.parametrize("squeeze", [1, 2])
def test_a_clip_of_the_fewest_samples_has_one_frame_of_the_encoder(squeeze):
    config = SimpleNamespace(**vars(CONVOLUTIONS), squeeze_factor=squeeze)
    least = num_samples_of_a_frame(config)
    # One frame: 2 -> (2 - 1) * 2 + 3 = 5 -> (5 - 1) * 5 + 10 = 30 samples; two: 4 -> 9 -> 50.
    assert least == {1: 30, 2: 50}[squeeze]
    assert num_encoder_frames(config, torch.tensor([least - 1, least])).tolist() == [0, squeeze]


def test_frames_are_counted_as_the_convolutions_make_them():
    layers = torch.nn.Sequential(*(torch.nn.Conv1d(1, 1, k, stride=s) for k, s in zip((10, 3, 2), (5, 2, 2), strict=True)))
    for samples in range(30, 80):
        assert num_encoder_frames(CONVOLUTIONS, torch.tensor([samples])).tolist() == [
            layers(torch.zeros(1, 1, samples)).shape[2]
        ]


def test_grouped_clips_come_back_in_their_order_and_alone_with_their_equals():
    shapes = []

    def model(features):
        shapes.append(tuple(features.shape))
        return SimpleNamespace(last_hidden_state=features[:, :, None])

    model.config = SimpleNamespace()
    features = torch.tensor([[1.0, 1, 9, 9], [2, 2, 2, 2], [3, 3, 9, 9]])
    assert grouped_mean(model, features, torch.tensor([2, 4, 2])).tolist() == [[1.0], [2.0], [3.0]]
    assert shapes == [(2, 2), (1, 4)]
