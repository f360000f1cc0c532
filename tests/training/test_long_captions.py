"""Captions that were too long are counted once for each time that training reads them."""

from dataclasses import replace

import pytest
import torch

from clapkit.training.long_captions import counted
from clapkit.training.plan import Progress
from clapkit.types import Batch

BATCH = Batch(
    *(torch.zeros(2, 4), torch.full((2,), 4), ["short", "much too long"]),
    *(torch.arange(2), torch.ones(2, 1), torch.ones(2, 1), torch.arange(2)),
)


class Reader:
    """Cuts, or splits, what has more than one word."""

    def __init__(self, *, splits: bool = False, tells: bool = True) -> None:
        self.captions_split, self.num_cut, self.splits, self.tells = 0, 5, splits, tells

    @property
    def captions_cut(self) -> tuple[int, int]:
        return self.num_cut, 1

    def long_among(self, captions: list[str]) -> tuple[int, int] | None:
        number = sum(" " in caption for caption in captions)
        return ((0, number) if self.splits else (number, 0)) if self.tells else None

    def read(self, captions: list[str]) -> None:
        number = sum(" " in caption for caption in captions)
        if self.splits:
            self.captions_split += number
        else:
            self.num_cut += number


@pytest.mark.parametrize("splits", [False, True])
def test_what_is_read_outside_does_not_count(splits: bool) -> None:
    encoder, progress = Reader(splits=splits), Progress(captions_cut=10, captions_split=20)
    encoder.read(["not of a batch"])
    with counted(encoder, BATCH, progress):
        encoder.read(BATCH.captions)
    encoder.read(["the second", "pass"])
    assert (progress.captions_cut, progress.captions_split) == ((10, 21) if splits else (11, 20))


@pytest.mark.parametrize("splits", [False, True])
def test_variants_do_not_count(splits: bool) -> None:
    encoder, progress = Reader(splits=splits), Progress()
    batch = replace(BATCH, variants=["also too long", "and this", "short", "short"])
    with counted(encoder, batch, progress):
        encoder.read(batch.captions + batch.variants)
    assert (progress.captions_cut, progress.captions_split) == ((0, 1) if splits else (1, 0))


def test_variants_count_where_nobody_can_tell_them_apart() -> None:
    encoder, progress = Reader(tells=False), Progress()
    batch = replace(BATCH, variants=["also too long", "short"])
    with counted(encoder, batch, progress):
        encoder.read(batch.captions + batch.variants)
    assert progress.captions_cut == 2


def test_an_encoder_that_does_not_count_is_none_that_cuts() -> None:
    progress = Progress()
    with counted(torch.nn.Linear(2, 2), replace(BATCH, variants=["a b", "c d"]), progress):
        pass
    assert progress == Progress()
