"""Mined batches: clips that the model mixes up at present share a batch, so that their negatives are hard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from clapkit.data.samplers import RandomBatches
from clapkit.errors import CheckpointError, ConfigError, ShapeError

# Numbers in the largest temporary array of the search: 32 MiB of float32.
_CHUNK = 2**23


class MinedBatches:
    """Batches grown from random seeds: each seed brings the unused clips that are hardest for its caption.

    From epoch ``every`` on, at the start of every ``every``-th epoch, the training set is embedded and the hard neighbours
    of every row are searched; the epochs until the next search shuffle with the same lists. Earlier epochs are those of
    ``RandomBatches``: what an untrained model mixes up says nothing. A batch is a seed popped from the shuffle, its
    neighbours (half the nearest unused ones, half drawn from further down its list), the next seed with its own, until the
    batch is full. A batch gets two rows of one group only where the sizes of the groups leave no other way.

    Reference: Deuser, Habel and Oswald, Sample4Geo: hard negative sampling for cross-view geo-localisation, 2023, arXiv
    2303.11851, dynamic similarity sampling. Deviations: random epochs instead of sampling by distance before the first
    search; used neighbours are replaced by the next ones of the list; candidates are filtered by their captions, see
    ``hard_neighbours``.

    Args:
        num_rows: training clips, N.
        batch_size: rows in a batch.
        seed: of the shuffles and draws.
        embed: gives the present unit-norm embeddings of audio and of one caption of every row, float [N, D] each; must
            leave random generators and modules as it found them.
        groups: int [N]; rows of one group, for example clips that share a caption, are no hard negatives of each other.
            None: every row is a group of its own.
        every: epochs between searches.
        neighbours: rows that a seed brings, at most; 0 is a plain shuffle.
        pool: length of the neighbour lists; None is twice ``neighbours``, as in the paper (64 and 128).
        filter: candidates for each place of a list, of which those with the most similar captions are dropped; 1 drops
            none.

    Raises:
        ConfigError: if a number is out of its range, no batch can be filled, or a batch holds no negative.
        ShapeError: if ``groups`` has not N entries.
    """

    known_ahead = False  # a search needs the weights of its epoch

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        seed: int,
        embed: Callable[[], tuple[np.ndarray, np.ndarray]],
        groups: np.ndarray | None = None,
        every: int = 4,
        neighbours: int = 64,
        pool: int | None = None,
        filter: int = 3,
    ) -> None:
        for option, value, least in (("every", every, 1), ("neighbours", neighbours, 0), ("filter", filter, 1)):
            if value < least:
                raise ConfigError(f"--mine-{option} {value}: expected {least} or more; pass such a number")
        if pool is not None and pool < neighbours:
            raise ConfigError(f"pool {pool}: a list of so many gives no {neighbours} neighbours; pass {neighbours} or more")
        if groups is not None and groups.shape != (num_rows,):
            raise ShapeError(f"groups of shape {groups.shape}: expected one for each of {num_rows} rows; pass ({num_rows},)")
        self._shuffled = RandomBatches(num_rows, batch_size, seed=seed)
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.batches_per_epoch = self._shuffled.batches_per_epoch
        self.every, self.neighbours, self.filter = every, neighbours, filter
        self.pool = 2 * neighbours if pool is None else pool
        self._embed = embed
        self._group = np.arange(num_rows) if groups is None else np.unique(groups, return_inverse=True)[1]
        self._lists = np.empty((num_rows, 0), dtype=np.int32)
        self._mined_in: int | None = None

    def epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [batches_per_epoch, batch_size]; searches first where that is due.

        Raises:
            ShapeError: if the embeddings are not those of N rows.
        """
        due = epoch // self.every * self.every
        if due == 0 or self.neighbours == 0:
            return self._shuffled.epoch(epoch)
        if self._mined_in != due:
            self._lists = self._search()
            self._mined_in = due
        return self._grow(np.random.default_rng([self.seed, epoch]))

    def state_dict(self) -> dict[str, Any]:
        """The neighbour lists, int32 [N, pool], and the epoch in which they were made (None before the first search)."""
        return {"neighbours": torch.from_numpy(self._lists.copy()), "mined_in": self._mined_in}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up lists, so that the epoch goes on with the batches that it was started with.

        Raises:
            CheckpointError: if the state is of another sampler or of other rows.
        """
        if state.keys() != {"neighbours", "mined_in"} or len(state["neighbours"]) != self.num_rows:
            found = f"lists of {len(state['neighbours'])} rows" if "neighbours" in state else "no neighbour lists"
            raise CheckpointError(
                f"state of the sampler: found {found}, expected those of {self.num_rows}; "
                "resume with the data and the options that the run was started with"
            )
        self._lists, self._mined_in = state["neighbours"].numpy(), state["mined_in"]

    def _search(self) -> np.ndarray:
        audio, text = self._embed()
        if audio.shape != text.shape or len(audio) != self.num_rows:
            raise ShapeError(
                f"mining: embeddings of shape {audio.shape} (audio) and {text.shape} (text), expected two of "
                f"({self.num_rows}, D); embed every training row once"
            )
        return hard_neighbours(audio, text, groups=self._group, pool=self.pool, filter=self.filter)

    def _grow(self, draw: np.random.Generator) -> np.ndarray:
        remaining = draw.permutation(self.num_rows)
        used = np.zeros(self.num_rows, dtype=bool)
        unused_of = np.bincount(self._group)  # rows of each group that are still free
        batches = np.empty((self.batches_per_epoch, self.batch_size), dtype=np.int64)
        for number in range(self.batches_per_epoch):
            remaining = remaining[~used[remaining]]
            batch = _Growing(self._group, unused_of, size=self.batch_size, batches_left=self.batches_per_epoch - number)
            for seed in remaining:
                if batch.is_full:
                    break
                # A row that was refused before stays refused: places only get scarcer.
                if not used[seed] and batch.takes(seed):
                    self._add(batch, seed, used, unused_of)
                    for row in self._drawn_neighbours(seed, used, draw):
                        if batch.takes(row):
                            self._add(batch, row, used, unused_of)
            missing = self.batch_size - len(batch.rows)
            if missing:  # the groups are too few or too unequal: some group must come twice
                for row in remaining[~used[remaining]][:missing]:
                    self._add(batch, row, used, unused_of)
            batches[number] = batch.rows
        return batches

    def _add(self, batch: _Growing, row: int, used: np.ndarray, unused_of: np.ndarray) -> None:
        batch.add(row)
        used[row] = True
        unused_of[self._group[row]] -= 1

    def _drawn_neighbours(self, seed: int, used: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        row = self._lists[seed]
        free = row[row >= 0]
        free = free[~used[free]]
        nearest = (self.neighbours + 1) // 2
        further = draw.permutation(free[nearest:])[: self.neighbours - nearest]
        return np.concatenate([free[:nearest], further])


class _Growing:
    """One batch on its way; knows which rows it can take without forcing a later batch to repeat a group.

    Let m_g rows of group g be unused and k batches be missing, this one included. They can do without repeats if and only
    if sum_g min(m_g, k) >= k B. What is above that is the slack. A group with m_g >= k that is left out of this batch
    costs one of it, any other choice costs nothing: so all such groups but as many as the slack need a place here.
    """

    def __init__(self, group: np.ndarray, unused_of: np.ndarray, *, size: int, batches_left: int) -> None:
        self.rows: list[int] = []
        self._group, self._size = group, size
        self._abundant = unused_of >= batches_left
        slack = int(np.minimum(unused_of, batches_left).sum()) - batches_left * size
        self._owed = int(np.clip(self._abundant.sum() - slack, 0, self._abundant.sum()))
        self._groups: set[int] = set()

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self._size

    def takes(self, row: int) -> bool:
        group = self._group[row]
        if self.is_full or group in self._groups:
            return False
        return bool(self._abundant[group]) or self._size - len(self.rows) > self._owed

    def add(self, row: int) -> None:
        group = self._group[row]
        self.rows.append(int(row))
        self._groups.add(group)
        self._owed -= bool(self._abundant[group]) and self._owed > 0


def hard_neighbours(audio: np.ndarray, text: np.ndarray, *, groups: np.ndarray, pool: int, filter: int) -> np.ndarray:
    """For every row, the clips that are hardest to tell from its own by its caption.

    Candidates are the ``pool * filter`` clips nearest to the caption, without those of its own group. A candidate whose own
    caption is similar as well is probably a true match, no hard negative: of ``filter`` candidates the one whose caption
    is least similar is kept. Memory grows with N, time with its square.

    Reference: the self-aware filter of SaHa, 2025, arXiv 2508.00955: candidates are replaced by their owner queries, of which
    the least similar stay. Deviation: the candidates of a row that has fewer are thinned by the same factor.

    Args:
        audio: unit-norm embeddings of the clips, float [N, D].
        text: unit-norm embeddings of one caption of each clip, float [N, D].
        groups: int [N]; rows of one group are never neighbours.
        pool: neighbours of a row, at most.
        filter: candidates per neighbour; 1 keeps all.

    Returns:
        int32 [N, pool], from the hardest (most similar to the caption) down, -1 where a row has no more.
    """
    audio, text = np.asarray(audio, dtype=np.float32), np.asarray(text, dtype=np.float32)
    num_rows, width = len(audio), min(pool * filter, len(audio) - 1)
    lists = np.full((num_rows, pool), -1, dtype=np.int32)
    if width == 0:
        return lists
    step = max(1, _CHUNK // max(num_rows, width * text.shape[1] if filter > 1 else 1))
    for start in range(0, num_rows, step):
        rows = np.arange(start, min(start + step, num_rows))
        score = text[rows] @ audio.T  # [rows, N]
        score[groups[rows][:, None] == groups[None, :]] = -np.inf
        candidates = np.argpartition(score, num_rows - width, axis=1)[:, num_rows - width :]
        hardness = np.take_along_axis(score, candidates, axis=1)  # [rows, width]
        if filter > 1:
            owner = np.matmul(text[candidates], text[rows][:, :, None])[:, :, 0]  # caption to caption
            hardness = _without_alike(hardness, owner, filter)
        order = np.argsort(-hardness, axis=1, kind="stable")[:, :pool]
        kept = np.take_along_axis(candidates, order, axis=1)
        kept[np.isneginf(np.take_along_axis(hardness, order, axis=1))] = -1
        lists[rows, : kept.shape[1]] = kept
    return lists


def _without_alike(hardness: np.ndarray, owner: np.ndarray, filter: int) -> np.ndarray:
    """Hardness with -inf for all but one of ``filter`` candidates, those whose caption is least similar stay."""
    exists = ~np.isneginf(hardness)
    order = np.argsort(np.where(exists, owner, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None, :], axis=1)
    num_kept = -(-exists.sum(axis=1, keepdims=True) // filter)
    filtered: np.ndarray = np.where(exists & (rank < num_kept), hardness, -np.inf)
    return filtered
