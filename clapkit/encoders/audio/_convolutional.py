"""The convolutional audio tower that ``small`` and ``tiny`` share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from clapkit.encoders.features import LogMel, RandomFilter, SpectrogramMasking
from clapkit.encoders.initialization import preserve_variance
from clapkit.types import AudioSpec


class ConvolutionalTower(nn.Module):
    """Log-mel spectrogram, residual convolution stages, attention pooling over time.

    Every waveform is padded to the same window, so the embedding of a clip does not depend on its neighbours in the batch.

    Args:
        sample_rate: Hz.
        window_s: length of the window that the tower sees.
        hop: step between spectrogram frames, samples.
        num_mels: mel bins.
        stem_stride: frames and mel bins that the first convolution takes into one, 2 or 4.
        stem_width: channels of the first convolution.
        widths: channels of each stage; every stage halves frames and mel bins.
        num_heads: attention-pooling heads.
        recurrent: whether a bidirectional recurrent layer reads the frames before they are pooled.
        augment: whether training filters and shifts spectrograms at random.
        mask: whether training masks bands of the spectrogram.

    Attributes:
        embedding_dim: width of the output.
        audio_spec: the input that the tower demands.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        window_s: float,
        hop: int,
        num_mels: int,
        stem_stride: int,
        stem_width: int,
        widths: Sequence[int],
        num_heads: int,
        recurrent: bool,
        augment: bool,
        mask: bool,
    ) -> None:
        super().__init__()
        self.audio_spec = AudioSpec(sample_rate=sample_rate, window_s=window_s)
        self.embedding_dim = 2 * widths[-1]
        self.log_mel = LogMel(sample_rate, hop=hop, num_mels=num_mels)
        self.normalize = nn.BatchNorm1d(num_mels)
        self.filtering = RandomFilter(gain_db=4.0, max_shift=2) if augment else nn.Identity()
        self.masking = SpectrogramMasking(max_mels=num_mels // 6, max_frames_share=0.1) if mask else nn.Identity()
        kernel = 2 * stem_stride + 1
        self.stem = nn.Sequential(
            nn.Conv2d(1, stem_width, kernel, stride=stem_stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
        )
        inputs = [stem_width, *widths[:-1]]
        self.stages = nn.Sequential(*(ResidualStage(a, b) for a, b in zip(inputs, widths, strict=True)))
        self.stride = hop * stem_stride * 2 ** len(widths)
        self.recurrent = RecurrentFrames(widths[-1]) if recurrent else None
        self.pool = AttentionPool(widths[-1], num_heads=num_heads)
        preserve_variance(self)

    @property
    def layers(self) -> list[nn.Module]:
        """The stages, from input to output."""
        return list(self.stages)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Encode waveforms float32 [B, T] of which ``num_samples`` [B] are real; gives [B, embedding_dim]."""
        spectrogram = self.filtering(self.log_mel(waveform))  # [B, F, M]
        spectrogram = self.normalize(spectrogram.transpose(1, 2)).transpose(1, 2)
        planes = self.masking(spectrogram)[:, None].contiguous(memory_format=torch.channels_last)  # [B, 1, F, M]
        planes = self.stages(self.stem(planes))  # [B, C, F', M']
        frames = (planes.mean(dim=3) + planes.amax(dim=3)).transpose(1, 2)  # [B, F', C]
        num_frames = 1 + torch.div(num_samples - 1, self.stride, rounding_mode="floor").clamp(min=0)
        num_frames = num_frames.clamp(max=frames.shape[1])
        if self.recurrent is not None:
            frames = self.recurrent(frames, num_frames)
        pooled: Tensor = self.pool(frames, num_frames)
        return pooled


class ResidualStage(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1 shortcut, frames and mel bins halved."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, planes: Tensor) -> Tensor:
        """[B, inputs, F, M] to [B, outputs, F / 2, M / 2]."""
        return functional.relu(self.convolutions(planes) + self.shortcut(planes))


class RecurrentFrames(nn.Module):
    """A bidirectional GRU over the frames: what came before and what comes after, in every one of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width // 2, bidirectional=True, batch_first=True)

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Frames [B, F, C] of which ``num_frames`` [B] are real to the same shape."""
        # Packed, so that the backward direction starts at the last real frame and not in the padding.
        packed = pack_padded_sequence(frames, num_frames.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=frames.shape[1])
        return states


class AttentionPool(nn.Module):
    """Learned queries, one a head, attend over time; their answers are joined with the mean.

    Frames carry their position, so that heads can tell early from late: "a dog, then a bell".
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.key = nn.Linear(width, num_heads)
        self.value = nn.Linear(width, width)
        self.position_scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Pool frames [B, F, C] of which ``num_frames`` [B] are real; gives [B, 2 C]."""
        batch, length, width = frames.shape
        real = torch.arange(length, device=frames.device)[None, :] < num_frames[:, None]  # [B, F]
        placed = frames + self.position_scale * sinusoids(length, width, frames)
        scores = self.key(placed).masked_fill(~real[:, :, None], -math.inf)  # [B, F, heads]
        values = functional.relu(self.value(placed)).view(batch, length, self.num_heads, -1)
        attended = torch.einsum("bfh,bfhc->bhc", scores.softmax(dim=1), values).reshape(batch, width)
        mean = (frames * real[:, :, None]).sum(dim=1) / num_frames[:, None]
        return torch.cat([attended, mean], dim=1)  # [B, 2 C]


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Position code [length, width] (Vaswani et al., 2017, section 3.5), wavelengths from 4 to 4 * length frames."""
    position = torch.arange(length, device=like.device, dtype=torch.float32)[:, None]
    steps = torch.linspace(0, 1, width // 2, device=like.device)[None, :]
    angle = position * (2 * math.pi / 4) * length**-steps
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(like.dtype)
