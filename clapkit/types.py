"""The vocabulary of clapkit: the records that flow between its layers.

Shape letters, the same in every docstring and comment:

    B  pairs in a batch        T  samples of a waveform     F  frames         M  mel bins
    D  embedding size          N  items of a gallery        Q  queries        K  entries per row, padded
    L  tokens of a caption     J  keys of a caption, padded C  clips in a batch, C <= B
    V  variants of a caption   W  windows of a clip

Sample rates are in Hz; names that end in ``_s`` are seconds. Embeddings have unit norm unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about a clip, with its language (ISO 639-1 tag)."""

    text: str
    lang: str = "en"


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording, or one span of one, with what is said about it.

    Attributes:
        id: unique in its manifest.
        audio: path of the audio file, absolute or relative to the root of the manifest.
        duration_s: length of the clip (of the span, if there is one); None until the file was looked at.
        sample_rate: of the file, in Hz; None until the file was looked at.
        num_channels: of the file; None until the file was looked at.
        captions: what people (or templates) say about it.
        labels: class names, written with blanks.
        split: ``train``, ``val``, ``test`` or a name of the user's.
        fold: official cross-validation fold, from 1.
        source: what the clip was cut from; clips with one source never fall in two splits. Default: the clip itself.
        start_s: start of the span inside the file.
        end_s: end of the span inside the file.
        extra: anything else the corpus says, JSON values only.
    """

    id: str
    audio: str
    duration_s: float | None = None
    sample_rate: int | None = None
    num_channels: int | None = None
    captions: tuple[Caption, ...] = ()
    labels: tuple[str, ...] = ()
    split: str | None = None
    fold: int | None = None
    source: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def in_split(self, split: str | None) -> Clip:
        """The clip in a split; takes half the time of ``dataclasses.replace``, for the clips of a whole corpus."""
        return Clip(
            self.id,
            self.audio,
            self.duration_s,
            self.sample_rate,
            self.num_channels,
            self.captions,
            self.labels,
            split,
            self.fold,
            self.source,
            self.start_s,
            self.end_s,
            self.extra,
        )

    def measured(self, duration_s: float, sample_rate: int, num_channels: int) -> Clip:
        """The clip with what its file says; takes half the time of ``dataclasses.replace``."""
        return Clip(
            self.id,
            self.audio,
            duration_s,
            sample_rate,
            num_channels,
            self.captions,
            self.labels,
            self.split,
            self.fold,
            self.source,
            self.start_s,
            self.end_s,
            self.extra,
        )


RejectionKind = Literal["bad", "missing", "excluded"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """An item that is not in the manifest, and why.

    Attributes:
        item: its id, path, or place in a table; one caption of a clip is an item, too.
        reason: one line: what was found, what was expected, what to do.
        kind: ``bad`` items cannot be used, ``missing`` ones are listed by the corpus but their audio is not there,
            ``excluded`` ones are fine and left out because the user asked for it.
        check: name of the check of ``prepare`` that refused it, if one did.
        split: of a missing or excluded clip, where the corpus says it.
        source: recording that a missing clip is from, so that other corpora can still leave it out.
    """

    item: str
    reason: str
    kind: RejectionKind = "bad"
    check: str | None = None
    split: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """What an audio tower demands of its input.

    Attributes:
        sample_rate: Hz.
        window_s: length of every waveform that reaches the tower.
    """

    sample_rate: int
    window_s: float

    @property
    def window_samples(self) -> int:
        """Length of a window in samples."""
        return round(self.sample_rate * self.window_s)


@dataclass(slots=True)
class Batch:
    """B pairs of audio and text from C clips; a clip that brings several captions is decoded and encoded once.

    Attributes:
        waveform: float32 [C, T], zeros behind the end of short clips; [C, W, T] where clips come as several windows.
        num_samples: int64 [C], how many samples of each waveform are real; [C, W], 0 where a clip has no such window.
        captions: B sentences, drawn for the clips.
        index: int64 [B], the row of the training set.
        text_keys: int64 [B, J], what the drawn caption stands for (its text, its clip, its labels), padded with 0.
        clip_keys: int64 [B, K], everything that is true of the clip (all its captions, itself, its labels), padded with 0.
        audio_row: int64 [B], the row of ``waveform`` that each pair hears; 0, 1, 2, ... with one caption per clip.
        languages: ISO 639-1 tag of each caption; empty where nobody asked.
        variants: B * V sentences, those of caption 0 first: what is made of each caption; empty where nobody asked.
        variant_truth: int8 [B, V], 1 where a variant is true of its clip too, -1 where it is false, 0 where there is none
            and its sentence is to be ignored; None without variants.
        sentence_keys: int64 [B, 1 + V], equal for equal sentences: of the caption and of its true variants, 0 at other places;
            None where no variant is ever true, or sentences are not compared.
        true_keys: int64 [B, K], such keys of all sentences that are known to be true of the clip: its captions and their true
            variants, drawn or not, padded with 0; None as above.
    """

    waveform: Tensor
    num_samples: Tensor
    captions: list[str]
    index: Tensor
    text_keys: Tensor
    clip_keys: Tensor
    audio_row: Tensor
    languages: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    variant_truth: Tensor | None = None
    sentence_keys: Tensor | None = None
    true_keys: Tensor | None = None

    def positives(self) -> Tensor:
        """Which pairs are no negatives of each other.

        Returns:
            bool [B, B], symmetric, True on the diagonal. Entry (i, j) is True when a key of caption i is a key of clip j, or
            one of caption j of clip i.
        """
        true_of = self.text_keys[:, :1] == self.text_keys[:, 0]  # [B, B]; the first key is the clip itself
        for text_key in self.text_keys.T:
            for clip_key in self.clip_keys.T:
                true_of = true_of | ((text_key[:, None] == clip_key) & (text_key != 0)[:, None])
        return true_of | true_of.T


@dataclass(slots=True)
class LossOutput:
    """What an objective gives back.

    Attributes:
        total: the scalar to minimise.
        terms: name -> unweighted scalar (detached), for the log.
        stats: name -> number that says what the objective is doing, for the log.
    """

    total: Tensor
    terms: dict[str, float]
    stats: dict[str, float]


@dataclass(frozen=True, slots=True)
class Context:
    """What objectives may look at beside the embeddings of the pairs; each field is there only if one needs it.

    Attributes:
        language: int64 [B], equal for captions of one language.
        variants: unit-norm embeddings of what is made of each caption [B, V, D].
        variant_truth: int8 [B, V], as in ``Batch``.
        sentence_keys: int64 [B, 1 + V], as in ``Batch``; None also where variants are needed.
        true_keys: int64 [B, K], likewise.
        teacher_audio: unit-norm audio embeddings of a model that is not trained by gradients [B, D].
        teacher_text: likewise [B, D].
        audio_features: the audio embeddings before they are brought to unit norm [B, D].
        text_features: likewise [B, D].
        windows: unit-norm embeddings of the windows of each clip [B, W, D], 0 where there is none.
        is_window: bool [B, W], where there is one.
    """

    language: Tensor | None = None
    variants: Tensor | None = None
    variant_truth: Tensor | None = None
    sentence_keys: Tensor | None = None
    true_keys: Tensor | None = None
    teacher_audio: Tensor | None = None
    teacher_text: Tensor | None = None
    audio_features: Tensor | None = None
    text_features: Tensor | None = None
    windows: Tensor | None = None
    is_window: Tensor | None = None

    def select(self, rows: Tensor) -> Context:
        """The context of some pairs, int64 [n] or bool [B]."""
        taken = {field.name: getattr(self, field.name) for field in fields(self)}
        return Context(**{name: None if value is None else value[rows] for name, value in taken.items()})


ContextNeed = Literal["language", "variants", "teacher", "features", "windows"]
"""A part of ``Context``, as objectives name it in their attribute ``needs``."""


@dataclass(frozen=True, slots=True)
class HitSpan:
    """A part of a file that answers a query: its seconds, and the cosine of its best window."""

    start_s: float | None
    end_s: float | None
    score: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One item found for a query.

    Attributes:
        rank: from 1.
        score: cosine of query and item, higher is better.
        z_score: how unusual that is here: standard deviations above the mean cosine of the query with all items searched
            in; None where there are too few items to say, or nobody counted.
        modality: ``audio`` or ``text``.
        id: of the clip.
        path: of its file.
        start_s: start of the best span, in seconds of the file.
        end_s: end of it.
        spans: parts of the file that answer, best first.
        captions: of the clip, or the one that was found.
        labels: of the clip.
        also: paths of further items of the same sound that were folded into this one.
    """

    rank: int
    score: float
    z_score: float | None
    modality: Literal["audio", "text"]
    id: str
    path: str
    start_s: float | None
    end_s: float | None
    spans: tuple[HitSpan, ...]
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    also: tuple[str, ...] = ()


class Objective(Protocol):
    """A loss on a batch of embeddings; owns every learnable thing that inference does not need.

    One that has to know more than the embeddings of the pairs has an attribute ``needs``, a frozenset of ``ContextNeed``, and
    is then called with ``context``, whose fields of that name are there. See ``clapkit.objectives.contract.score``.
    """

    def __call__(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch.

        Args:
            audio: unit-norm audio embeddings [B, D].
            text: unit-norm text embeddings [B, D]; row i belongs to row i of ``audio``.
            positives: bool [B, B], pairs that are no negatives, True on the diagonal.
            index: int64 [B], training rows, for objectives with a memory.
            progress: share of the training that is done, in [0, 1], for schedules.
        """
        ...


class AudioTower(Protocol):
    """Waveforms to vectors, before the projection head.

    A tower may have more, and both kinds may have the same:

    - ``rebuild_options``: mapping of JSON values that replace the options it was built with, so that ``build`` makes the same
      module again without any file; its weights come from the model folder then. A value of None takes an option away.
    - ``notes``: sentences that the user should read, such as which tensors of a checkpoint were left out.
    - ``layers``: the blocks from input to output, for ``--unfreeze-last``, ``--layer-decay`` and ``--grad-checkpointing``.
    """

    embedding_dim: int
    audio_spec: AudioSpec

    def __call__(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Encode waveforms [B, T] with ``num_samples`` [B] to [B, embedding_dim]."""
        ...


class TextTower(Protocol):
    """Sentences to vectors, before the projection head.

    A tower may have ``takes_languages`` = True: it is then called with the language of every sentence as a second argument.
    It may count the captions that it cut in ``num_cut``, at ``max_tokens`` tokens each. The rest is as in ``AudioTower``.
    """

    embedding_dim: int

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Encode B sentences to [B, embedding_dim]."""
        ...


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """What a recipe is asked for.

    Attributes:
        source: the file or folder that the user named.
        audio_dir: where the audio of a table lies, if not beside it.
        output_dir: the run directory; only recipes that make sound write there, under ``audio/``.
        seed: of everything that draws.
        workers: processes to use.
        reporter: progress and messages.
    """

    source: Path | None
    audio_dir: Path | None
    output_dir: Path
    seed: int
    workers: int
    reporter: Reporter


@dataclass(frozen=True, slots=True)
class Relevance:
    """How well a clip answers a query, as a person said; grade 0 is not at all."""

    query: str
    clip_id: str
    grade: float = 1.0


@dataclass(frozen=True, slots=True)
class CorpusDescription:
    """What a recipe knows about a corpus as a whole.

    Attributes:
        official: split -> number of clips that the corpus has where it is complete.
        facts: anything that a result should name, such as the version of the captions; JSON values.
        warnings: what looks wrong, one sentence each.
        relevance: judgements of pairs of query and clip, where the corpus brings them.
    """

    official: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    relevance: Sequence[Relevance] = ()


class Recipe(Protocol):
    """Reads (or makes) one kind of corpus.

    Attributes:
        needs_source: False for recipes that need nothing.
        makes_audio: whether the files are written by the recipe, below ``RecipeRequest.output_dir``.
    """

    needs_source: bool
    makes_audio: bool

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield every item of the corpus, in a reproducible order, without decoding audio."""
        ...


@runtime_checkable
class DescribesCorpus(Protocol):
    """A recipe that knows something about its corpus as a whole."""

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Describe the corpus, asked after ``clips``.

        Args:
            clips: that can be used, with durations and splits filled in.
        """
        ...


class Metric(Protocol):
    """Scores and truth to one value per query; the mean is taken elsewhere."""

    def __call__(self, scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
        """Evaluate ``scores`` [Q, N] against ``relevant`` bool [Q, N]; gives [Q]."""
        ...


class Tracker(Protocol):
    """A running progress display."""

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Move on by ``amount``; ``fields`` are shown behind the bar."""
        ...


class Reporter(Protocol):
    """Where a step says what it does; the command line shows it, tests ignore it."""

    def say(self, message: str) -> None:
        """Tell the user something that matters."""
        ...

    def warn(self, message: str) -> None:
        """Tell the user something that may be wrong."""
        ...

    def track(self, description: str, total: int | None, unit: str = "") -> AbstractContextManager[Tracker]:
        """Show progress over ``total`` units."""
        ...


class _SilentTracker:
    def advance(self, amount: int = 1, **fields: str) -> None:
        """Do nothing."""


class _SilentTracking(AbstractContextManager["_SilentTracker"]):
    def __enter__(self) -> _SilentTracker:
        return _SilentTracker()

    def __exit__(self, *exc_info: object) -> None:
        return None


class SilentReporter:
    """A reporter that shows nothing, for use as a library and in tests."""

    def say(self, message: str) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""

    def track(self, description: str, total: int | None, unit: str = "") -> AbstractContextManager[Tracker]:
        """Track nothing."""
        return _SilentTracking()
