from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.data.caption_variants import CaptionVariants
from clapkit.data.dataset import KeyPolicy, TrainingBatches, caption_groups, identity_keys
from clapkit.data.decoded import AudioCache, DecodedClips
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import RandomBatches
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import AudioSpec, Caption, Clip

SPEC = AudioSpec(sample_rate=8000, window_s=1.0)


def batches(manifest: Manifest, *, seed: int = 0, workers: int = 2, captions_per_clip: int = 1) -> TrainingBatches:
    sampler = RandomBatches(len(manifest), 4, seed=seed)
    options = {"seed": seed, "workers": workers, "captions_per_clip": captions_per_clip}
    return TrainingBatches(manifest, SPEC, sampler=sampler, positives="caption", **options)


@pytest.fixture
def ramp(tmp_path: Path) -> Manifest:
    """Four clips of four seconds whose sample value is their time."""
    clips = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.arange(32000) / 32000, 8000, subtype="FLOAT")
        clips.append(Clip(str(number), path.name, 4.0, 8000, 1, captions=(Caption(f"clip {number}"),)))
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="ramp")


def test_long_clips_are_cropped_at_random_and_short_ones_padded(ramp: Manifest) -> None:
    source = batches(ramp)
    starts = [float(source.example(0, epoch).waveform[0]) * 4 for epoch in range(50)]  # seconds
    assert min(starts) < 0.5
    assert max(starts) > 2.5
    assert max(starts) <= 3.0
    example = source.example(0, 0)
    assert np.allclose(np.diff(example.waveform), 1 / 32000, atol=1e-6)
    assert example.num_samples == 8000


def test_an_example_does_not_depend_on_threads_or_on_what_came_before(ramp: Manifest) -> None:
    one = list(batches(ramp, workers=1).epoch(3))
    source = batches(ramp, workers=4)
    list(source.epoch(0))
    other = list(source.epoch(3))
    assert torch.equal(one[0].waveform, other[0].waveform)
    assert one[0].captions == other[0].captions
    assert torch.equal(one[0].index, other[0].index)


def test_an_epoch_can_be_taken_up_in_the_middle(tone_corpus: Callable[..., Path]) -> None:
    source = batches(Manifest.load(tone_corpus()).split("train"))
    whole, rest = list(source.epoch(1)), list(source.epoch(1, first=2))
    assert len(whole) == 4
    assert len(rest) == 2
    assert torch.equal(whole[2].waveform, rest[0].waveform)
    assert whole[3].captions == rest[1].captions


def test_every_caption_is_drawn_at_some_time(tone_corpus: Callable[..., Path]) -> None:
    source = batches(Manifest.load(tone_corpus()).split("train"))
    assert {source.example(0, epoch).captions[0] for epoch in range(20)} == {0, 1}


def test_one_caption_per_clip_is_drawn_as_ever(ramp: Manifest) -> None:
    # The order of the draws is part of what a seed means: first the caption, then the window.
    source = batches(ramp, seed=7)
    draw = np.random.default_rng([7, 5, 2])
    caption, offset_s = int(draw.integers(1)), 3.0 * draw.random()
    example = source.example(2, 5)
    assert example.captions == [caption]
    assert float(example.waveform[0]) * 4 == pytest.approx(offset_s, abs=1 / 8000)
    batch = next(source.epoch(5))
    assert batch.audio_row.tolist() == [0, 1, 2, 3]
    assert batch.waveform.shape == (4, 8000)


@pytest.fixture
def described(tmp_path: Path) -> Manifest:
    """Four clips with 4, 3, 2 and 1 different captions; one is written twice."""
    soundfile.write(tmp_path / "a.wav", np.arange(8000) / 8000, 8000, subtype="FLOAT")
    texts = [["a", "b", "c", "d"], ["e", "f", "g"], ["h", "i", "H."], ["j"]]
    clips = [Clip(str(n), "a.wav", 1.0, 8000, 1, captions=tuple(map(Caption, texts[n]))) for n in range(4)]
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="described")


def test_several_captions_of_a_clip_share_one_waveform(described: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    source = batches(described, captions_per_clip=3, workers=1)
    spans: list[int] = []
    read = DecodedClips.read
    monkeypatch.setattr(
        DecodedClips, "read", lambda self, row, out, **where: spans.append(row) or read(self, row, out, **where)
    )
    monkeypatch.setattr(RandomBatches, "known_ahead", False)
    batch = next(source.epoch(0))
    assert sorted(spans) == [0, 1, 2, 3]
    assert batch.waveform.shape == (4, 8000)
    assert batch.num_samples.tolist() == [8000] * 4
    assert batch.audio_row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.index.tolist() == [row for row in spans for _ in range(3)]
    for row, caption in zip(batch.index.tolist(), batch.captions, strict=True):
        assert caption in [c.text for c in described.clips[row].captions]
    assert torch.equal(batch.positives(), batch.index[:, None] == batch.index)


def test_captions_of_a_clip_are_different_while_there_are_enough(described: Manifest) -> None:
    source = batches(described, captions_per_clip=3)
    for epoch in range(30):
        for row, different in enumerate(([0, 1, 2, 3], [0, 1, 2], [0, 1], [0])):
            drawn = source.example(row, epoch).captions
            assert len(drawn) == 3
            assert set(drawn) <= set(different)
            assert len(set(drawn)) == min(3, len(different))
    assert {n for epoch in range(30) for n in source.example(0, epoch).captions} == {0, 1, 2, 3}
    assert source.num_short_of_captions == 2
    assert batches(described, captions_per_clip=2).num_short_of_captions == 1
    assert batches(described).num_short_of_captions == 0


def test_several_captions_are_a_function_of_seed_epoch_and_row(described: Manifest) -> None:
    one, other = batches(described, captions_per_clip=2), batches(described, captions_per_clip=2, workers=1)
    list(one.epoch(0))
    assert next(one.epoch(4)).captions == next(other.epoch(4)).captions
    draws = [[tuple(batches(described, seed=s, captions_per_clip=2).example(0, e).captions) for e in range(8)] for s in (0, 1)]
    assert draws[0] != draws[1]
    assert len(set(draws[0])) > 1


def test_a_probe_is_the_start_of_every_clip_with_its_first_caption(ramp: Manifest) -> None:
    for source in (batches(ramp), batches(ramp, seed=9, captions_per_clip=3, workers=1)):
        batch = source.probe(np.array([2, 0]))
        assert batch.captions == ["clip 2", "clip 0"]
        assert batch.index.tolist() == [2, 0]
        assert batch.audio_row.tolist() == [0, 1]
        assert np.allclose(batch.waveform.numpy(), np.arange(8000) / 32000, atol=1e-6)
        assert torch.equal(batch.positives(), torch.eye(2, dtype=torch.bool))
    assert torch.equal(batch.waveform, source.probe([2, 0]).waveform)


def test_a_probe_of_several_captions_takes_the_first_different_ones_and_repeats_them(described: Manifest) -> None:
    batch = batches(described).probe([2, 1, 3], captions_per_clip=3)
    assert batch.captions == ["h", "i", "h", "e", "f", "g", "j", "j", "j"]
    assert batch.audio_row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch.index.tolist() == [2, 2, 2, 1, 1, 1, 3, 3, 3]
    assert batch.waveform.shape == (3, 8000)


def test_the_state_of_the_batches_is_that_of_their_sampler(ramp: Manifest) -> None:
    class Remembering(RandomBatches):
        taken: object = None

        def state_dict(self) -> dict[str, int]:
            return {"lists": 3}

        def load_state_dict(self, state: object) -> None:
            self.taken = state

    sampler = Remembering(4, 2, seed=0)
    source = TrainingBatches(ramp, SPEC, sampler=sampler, positives="clip", seed=0, workers=1)
    assert source.state_dict() == {"lists": 3}
    source.load_state_dict({"lists": 4})
    assert sampler.taken == {"lists": 4}


def test_spans_start_where_the_manifest_says(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.arange(32000) / 32000, 8000, subtype="FLOAT")
    clips = [Clip(str(n), "a.wav", 1.5, 8000, 1, captions=(Caption("x"),), start_s=2.0, end_s=3.5) for n in range(4)]
    manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="span")
    waveform = batches(manifest).probe([0]).waveform[0]
    assert waveform[[0, -1]].tolist() == pytest.approx([0.5, 0.75], abs=1e-4)
    starts = [float(batches(manifest).example(0, epoch).waveform[0]) * 4 for epoch in range(30)]
    assert 2.0 <= min(starts) < 2.2
    assert 2.3 < max(starts) <= 2.5


@pytest.mark.parametrize("audio_cache", ["auto", "memory", "disk", "none"])
def test_a_cache_changes_no_sample(ramp: Manifest, tmp_path: Path, audio_cache: AudioCache) -> None:
    spec = AudioSpec(sample_rate=6000, window_s=1.3)

    def source(cache: AudioCache, workers: int) -> TrainingBatches:
        options = {"seed": 0, "workers": workers, "audio_cache": cache, "cache_dir": tmp_path / "cache"}
        return TrainingBatches(ramp, spec, sampler=RandomBatches(4, 2, seed=0), positives="clip", **options)

    expected = source("none", 1)
    for attempt in range(2):  # the second finds what the first left
        kept = source(audio_cache, 1 + attempt)
        for epoch in range(3):
            for found, wanted in zip(kept.epoch(epoch), expected.epoch(epoch), strict=True):
                assert torch.equal(found.waveform, wanted.waveform)
                assert torch.equal(found.num_samples, wanted.num_samples)


def test_an_example_is_a_row_of_its_batch(ramp: Manifest) -> None:
    source = batches(ramp)
    batch = next(source.epoch(2))
    for place, row in enumerate(batch.index.tolist()):
        example = source.example(row, 2)
        assert np.array_equal(batch.waveform[place].numpy(), example.waveform)
        assert batch.num_samples[place] == example.num_samples


@pytest.mark.parametrize("captions_per_clip", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_parts_of_all_processes_are_the_whole_batch(
    tone_corpus: Callable[..., Path], size: int, captions_per_clip: int
) -> None:
    manifest = Manifest.load(tone_corpus()).split("train")
    options = {"captions_per_clip": captions_per_clip, "size": 8}
    whole = part_of(manifest, (0, 1), **options)
    parts = [part_of(manifest, (rank, size), **options) for rank in range(size)]
    assert {source.batches_per_epoch for source in [whole, *parts]} == {len(manifest) // 8}
    for epoch, first in ((0, 0), (3, 1)):
        streams = [source.epoch(epoch, first=first) for source in parts]
        for expected in whole.epoch(epoch, first=first):
            found = [next(stream) for stream in streams]
            for name in ("waveform", "num_samples", "index", "text_keys", "clip_keys"):
                assert torch.equal(torch.cat([getattr(batch, name) for batch in found]), getattr(expected, name))
            assert [caption for batch in found for caption in batch.captions] == expected.captions
            assert [language for batch in found for language in batch.languages] == expected.languages
            assert all(len(batch.waveform) == 8 // size for batch in found)
            own_rows = torch.arange(8 // size).repeat_interleave(captions_per_clip)
            assert all(torch.equal(batch.audio_row, own_rows) for batch in found)
        assert all(next(stream, None) is None for stream in streams)


def part_of(manifest: Manifest, part: tuple[int, int], *, size: int, captions_per_clip: int = 1) -> TrainingBatches:
    options = {"seed": 1, "workers": 2, "captions_per_clip": captions_per_clip, "part": part}
    return TrainingBatches(manifest, SPEC, sampler=RandomBatches(len(manifest), size, seed=1), positives="caption", **options)


def test_a_process_decodes_only_its_part(ramp: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    read = DecodedClips.read
    monkeypatch.setattr(DecodedClips, "read", lambda self, row, out, **where: rows.append(row) or read(self, row, out, **where))
    monkeypatch.setattr(RandomBatches, "known_ahead", False)
    (batch,) = part_of(ramp, (1, 2), size=4).epoch(0)
    assert sorted(rows) == sorted(batch.index.tolist())
    assert len(rows) == 2


def test_a_probe_is_not_shared_among_processes(ramp: Manifest) -> None:
    assert part_of(ramp, (1, 2), size=4).probe([0, 1, 2]).index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("captions_per_clip", "message"),
    [
        (1, "--batch-size 4: its 4 clips cannot be shared evenly by 3 processes; pass --batch-size 6"),
        (2, "--batch-size 8: its 4 clips of 2 captions a clip cannot be shared evenly by 3 processes; pass --batch-size 12"),
    ],
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused(ramp: Manifest, captions_per_clip: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part_of(ramp, (0, 3), size=4, captions_per_clip=captions_per_clip)


def test_a_batch_knows_the_language_of_each_caption(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.arange(8000) / 8000, 8000, subtype="FLOAT")
    texts = (Caption("Dog.", "en"), Caption("Hund.", "de"), Caption("Chien.", "fr"))
    clips = [Clip(str(n), "a.wav", 1.0, 8000, 1, captions=texts) for n in range(4)]
    manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="languages")
    language_of = {caption.text: caption.lang for caption in texts}
    for batch in (next(batches(manifest, captions_per_clip=2).epoch(0)), batches(manifest).probe([2, 1], captions_per_clip=3)):
        assert batch.languages == [language_of[caption] for caption in batch.captions]
        assert len(set(batch.languages)) > 1


@pytest.mark.parametrize(("batch_size", "workers", "expected"), [(2, 1, 3), (2, 8, 16), (4, 8, 8), (4, 3, 3)])
def test_every_thread_has_clips_to_decode_ahead(ramp: Manifest, batch_size: int, workers: int, expected: int) -> None:
    # 4 clips for each thread, and 3 batches at least: 8 threads need 32 clips, 16 batches of 2.
    assert batches(ramp, workers=workers)._batches_ahead(batch_size) == expected


def test_batches_ahead_are_bounded_by_their_memory(ramp: Manifest) -> None:
    spec = AudioSpec(sample_rate=48000, window_s=100.0)  # 19.2 MB a clip: 1 GiB holds 13 batches of 4
    sampler = RandomBatches(4, 4, seed=0)
    source = TrainingBatches(ramp, spec, sampler=sampler, positives="clip", seed=0, workers=64)
    assert source._batches_ahead(4) == 13
    assert source._batches_ahead(16) == 3
    assert source._batches_ahead(64) == 2  # 1.2 GB each: one in use would leave the threads idle


def test_captions_are_the_same_when_case_blanks_and_full_stop_differ() -> None:
    clips = [
        Clip("a", "a", captions=(Caption("A dog  barks."), Caption("Woof"))),
        Clip("b", "b", captions=(Caption("a dog barks"),)),
    ]
    captions, clip_keys, _ = identity_keys(clips, "caption")
    assert captions[0][0] == captions[1][0]
    assert captions[0][0] in clip_keys[1]
    only_clips, clip_keys, _ = identity_keys(clips, "clip")
    assert only_clips == [[0, 0], [0]]
    assert len(set(clip_keys[:, 0].tolist())) == 2


def captioned(*texts: list[str]) -> list[Clip]:
    return [Clip(str(n), "a", captions=tuple(map(Caption, captions))) for n, captions in enumerate(texts)]


def test_clips_that_share_a_caption_are_a_group_also_over_other_clips() -> None:
    # 0 and 3 share b, 3 and 4 share c, so 0, 3 and 4 are one group; 1 and 5 differ in case, blanks and full stop only.
    clips = captioned(["a", "b"], ["A dog  barks."], ["x"], ["c", "b"], ["c"], ["a dog barks"])
    groups = caption_groups(clips)
    assert groups.tolist() == [0, 1, 2, 0, 0, 1]
    assert groups.dtype == np.int64


def test_clips_without_captions_are_groups_of_their_own() -> None:
    assert caption_groups(captioned([], ["a"], [], ["a"])).tolist() == [0, 1, 2, 1]


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=3), min_size=1, max_size=14))
def test_groups_are_the_connected_components(texts: list[list[str]]) -> None:
    groups = caption_groups(captioned(*texts))
    linked = np.array([[i == j or bool(set(a) & set(b)) for j, b in enumerate(texts)] for i, a in enumerate(texts)])
    reachable = np.linalg.matrix_power(linked.astype(float), len(texts)) > 0  # entries stay below 14 ** 14
    assert np.array_equal(groups[:, None] == groups, reachable)


def test_label_sets_are_keys_only_where_asked() -> None:
    clips = [Clip("a", "a", labels=("x", "y")), Clip("b", "b", labels=("y", "x")), Clip("c", "c")]
    _, clip_keys, labels = identity_keys(clips, "label")
    assert labels[0] == labels[1] != 0
    assert labels[2] == 0
    assert labels[0] in clip_keys[1]
    assert not identity_keys(clips, "caption")[2].any()


def test_batches_know_which_pairs_are_no_negatives(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    clips = [Clip(str(n), "a.wav", 1.0, 8000, 1, captions=(Caption("same" if n < 2 else f"other {n}"),)) for n in range(4)]
    manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="same")
    batch = next(iter(batches(manifest).epoch(0)))
    expected = torch.eye(4, dtype=torch.bool)
    same = [i for i in range(4) if batch.captions[i] == "same"]
    expected[same[0], same[1]] = expected[same[1], same[0]] = True
    assert torch.equal(batch.positives(), expected)


@pytest.fixture
def composed(tmp_path: Path) -> Manifest:
    """Four clips, of which the second holds a part of the first, which is the third, and the last nothing of others."""
    soundfile.write(tmp_path / "a.wav", np.arange(8000) / 8000, 8000, subtype="FLOAT")
    texts = [
        ["A dog barks, then rain falls."],
        ["A man speaks.", "A man speaks while a dog barks."],
        ["a dog  BARKS"],
        ["A bell rings."],
    ]
    clips = [Clip(str(n), "a.wav", 1.0, 8000, 1, captions=tuple(map(Caption, texts[n]))) for n in range(4)]
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="composed")


def told(manifest: Manifest, *, num_true: int = 1, positives: KeyPolicy = "caption", **options: Any) -> TrainingBatches:
    draw = CaptionVariants(manifest.clips, num_false=1, num_true=num_true)
    sampler = RandomBatches(len(manifest), 4, seed=0)
    return TrainingBatches(
        manifest, SPEC, sampler=sampler, positives=positives, seed=0, workers=1, variant_draw=draw, **options
    )


@pytest.mark.parametrize("positives", ["caption", "label"])
@pytest.mark.parametrize("part", [(0, 1), (0, 2), (1, 2)])
def test_a_batch_knows_what_is_true_of_its_clips(composed: Manifest, positives: KeyPolicy, part: tuple[int, int]) -> None:
    true = [
        ["a dog barks, then rain falls", "a dog barks", "rain falls"],
        ["a man speaks", "a man speaks while a dog barks", "a dog barks"],
        ["a dog barks"],
        ["a bell rings"],
    ]
    source = told(composed, positives=positives, part=part)
    drawn: set[str] = set()
    for epoch in range(8):
        batch = next(source.epoch(epoch))
        said = [[text, *batch.variants[2 * n : 2 * n + 2]] for n, text in enumerate(batch.captions)]
        truth = torch.nn.functional.pad(batch.variant_truth, (1, 0), value=1)
        assert batch.sentence_keys.shape == truth.shape == (4 // part[1], 3)
        assert torch.equal(batch.sentence_keys != 0, truth == 1)  # what is false or missing has no key
        for i, row in enumerate(batch.index.tolist()):
            assert (batch.true_keys[i] != 0).sum() == len(true[row])
            for j, place in np.argwhere(truth.numpy() == 1):
                text = " ".join(said[j][place].lower().rstrip(".").split())
                assert bool((batch.sentence_keys[j, place] == batch.true_keys[i]).any()) == (text in true[row])
                drawn.add(text)
    assert {"rain falls", "a dog barks"} & drawn


def test_what_is_true_of_a_clip_is_told_only_where_somebody_could_look_at_it(composed: Manifest) -> None:
    for source in (told(composed, num_true=0), told(composed, positives="clip"), batches(composed)):
        batch = next(source.epoch(0))
        assert batch.sentence_keys is None
        assert batch.true_keys is None
    probe = told(composed).probe([0, 1])
    assert probe.variants == []
    assert probe.sentence_keys is None
    assert probe.true_keys is None


def test_pairs_of_one_clip_have_the_same_true_sentences(composed: Manifest) -> None:
    sampler = RandomBatches(4, 4, seed=0)
    draw = CaptionVariants(composed.clips, num_false=0, num_true=2)
    options = {"positives": "caption", "seed": 0, "workers": 1, "captions_per_clip": 2, "variant_draw": draw}
    batch = next(TrainingBatches(composed, SPEC, sampler=sampler, **options).epoch(0))
    assert batch.sentence_keys.shape == (8, 3)
    assert batch.true_keys.shape == (8, 3)
    assert torch.equal(batch.true_keys[0::2], batch.true_keys[1::2])


def test_a_clip_without_caption_is_named(tmp_path: Path) -> None:
    clips = [Clip(str(n), "a.wav", 1.0, 8000, 1) for n in range(4)]
    manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="mute")
    with pytest.raises(ManifestError, match="4 clips have no caption, first 0"):
        batches(manifest)


def decoded_rows(source: TrainingBatches, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows whose decoding has begun, as it goes on."""
    begun: list[int] = []
    start = TrainingBatches._start
    monkeypatch.setattr(
        TrainingBatches, "_start", lambda self, pool, place, rows: (begun.extend(rows), start(self, pool, place, rows))[1]
    )
    return begun


def test_the_next_epoch_is_decoded_while_the_last_batches_of_this_one_are_trained_on(
    ramp: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, source = batches(ramp), batches(ramp)
    expected = [next(plain.epoch(number)) for number in (0, 1, 2)]
    begun = decoded_rows(source, monkeypatch)
    found = [next(source.epoch(number)) for number in (0, 1, 2)]  # an epoch has one batch
    assert len(begun) == 4 * 5  # three, and two that are ahead: none was begun twice
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.waveform, other.waveform)
        assert one.captions == other.captions
    source.close()
    assert torch.equal(next(source.epoch(3)).waveform, next(plain.epoch(3)).waveform)


def test_another_epoch_than_the_next_can_be_asked_for(ramp: Manifest) -> None:
    source = batches(ramp)
    list(source.epoch(0))
    assert torch.equal(next(source.epoch(7)).waveform, next(batches(ramp).epoch(7)).waveform)


def test_an_epoch_that_depends_on_the_weights_is_not_drawn_before_its_time(ramp: Manifest) -> None:
    class Mined(RandomBatches):
        known_ahead = False
        drawn: list[int] = []

        def epoch(self, epoch: int) -> np.ndarray:
            self.drawn.append(epoch)
            return super().epoch(epoch)

    source = TrainingBatches(ramp, SPEC, sampler=Mined(4, 2, seed=0), positives="clip", seed=0, workers=1)
    assert len(list(source.epoch(0))) == 2
    assert Mined.drawn == [0]
    list(source.epoch(1))
    assert Mined.drawn == [0, 1]


def window_batches(
    manifest: Manifest, windows: int, *, seed: int = 0, cache: AudioCache = "auto", **more: Path
) -> TrainingBatches:
    sampler = RandomBatches(len(manifest), 4, seed=seed)
    fixed = {"sampler": sampler, "positives": "caption", "seed": seed, "workers": 2}
    return TrainingBatches(manifest, SPEC, **fixed, windows=windows, audio_cache=cache, **more)


@pytest.fixture
def ramps(tmp_path: Path) -> Manifest:
    """Clips of 0.5, 1, 2.25 and 10 seconds whose sample value is their time in units of ten seconds."""
    clips = []
    for number, duration_s in enumerate((0.5, 1.0, 2.25, 10.0)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.arange(round(8000 * duration_s)) / 80000, 8000, subtype="FLOAT")
        clips.append(Clip(str(number), path.name, duration_s, 8000, 1, captions=(Caption("a"), Caption("b"))))
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="ramps")


def starts_s(waveform: np.ndarray | torch.Tensor) -> list[float]:
    """Where the windows [W, T] of a ramp begin, seconds."""
    return (np.asarray(waveform)[:, 0] * 10.0).round(4).tolist()


def test_a_clip_brings_as_many_windows_as_cover_it(ramps: Manifest) -> None:
    source = window_batches(ramps, 4)
    # 0.5 and 1 s fit into one window; 2.25 s are three, the last one not whole; 10 s would be ten, and four are asked for.
    for row, expected in enumerate(([4000, 0, 0, 0], [8000, 0, 0, 0], [8000, 8000, 8000, 0], [8000] * 4)):
        example = source.example(row, 0)
        assert example.num_samples.tolist() == expected
        assert example.waveform.shape == (4, 8000)
        for samples, count in zip(example.waveform, expected, strict=True):
            assert not samples[count:].any()
            assert np.allclose(np.diff(samples[:count]), 1 / 80000, atol=1e-6)  # one piece of the clip each


def test_windows_are_drawn_one_in_each_part_of_the_clip(ramps: Manifest) -> None:
    source = window_batches(ramps, 3)
    drawn = np.array([starts_s(source.example(3, epoch).waveform) for epoch in range(200)])  # [epochs, W]
    for number in range(3):  # of the 9 s in which a window may begin, three each
        assert drawn[:, number].min() >= 3 * number
        assert drawn[:, number].max() <= 3 * (number + 1)
        assert np.ptp(drawn[:, number]) > 2.8
    assert (np.diff(drawn, axis=1) >= 0).all()
    heard = np.zeros(1000, dtype=bool)
    for start in drawn.ravel():
        heard[int(start * 100) : int(start * 100) + 100] = True
    assert heard[10:990].all()  # nothing of the clip is left out over the epochs
    assert abs(drawn.mean() - 4.5) < 0.2


def test_one_window_is_drawn_as_ever_and_several_change_no_captions(ramps: Manifest) -> None:
    one, plain, three = window_batches(ramps, 1, seed=5), batches(ramps, seed=5), window_batches(ramps, 3, seed=5)
    for batch, other, several in zip(one.epoch(2), plain.epoch(2), three.epoch(2), strict=True):
        assert torch.equal(batch.waveform, other.waveform)
        assert torch.equal(batch.num_samples, other.num_samples)
        assert batch.waveform.is_contiguous()
        assert batch.waveform.shape == (4, 8000)
        assert batch.num_samples.shape == (4,)
        assert several.captions == batch.captions
        assert several.waveform.shape == (4, 3, 8000)
        assert several.num_samples.shape == (4, 3)
        assert several.num_samples.dtype == batch.num_samples.dtype == torch.int64
        short = batch.index < 2  # clips of one window
        assert torch.equal(several.waveform[short, 0], batch.waveform[short])


def test_windows_are_a_function_of_seed_epoch_and_row(ramps: Manifest) -> None:
    source = window_batches(ramps, 3)
    list(source.epoch(0))
    batch = next(source.epoch(4))
    again = window_batches(ramps, 3)
    for place, row in enumerate(batch.index.tolist()):
        assert np.array_equal(again.example(row, 4).waveform, batch.waveform[place].numpy())
    others = [window_batches(ramps, 3, seed=seed).example(3, epoch).waveform for seed, epoch in ((0, 5), (1, 4))]
    assert not any(np.array_equal(other, again.example(3, 4).waveform) for other in others)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_windows_are_the_same_whatever_is_kept(ramps: Manifest, tmp_path: Path, cache: AudioCache) -> None:
    source = window_batches(ramps, 3, cache=cache, cache_dir=tmp_path / "cache")
    for epoch in (0, 1):
        found, expected = next(source.epoch(epoch)), next(window_batches(ramps, 3, cache="none").epoch(epoch))
        assert torch.equal(found.waveform, expected.waveform)
        assert torch.equal(found.num_samples, expected.num_samples)


def test_no_more_is_decoded_than_is_heard(ramps: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    decode = DecodedClips._decode

    def count(self: DecodedClips, row: int, *, offset: int = 0, num_samples: int | None = None) -> np.ndarray:
        asked.append(num_samples)
        return decode(self, row, offset=offset, num_samples=num_samples)

    monkeypatch.setattr(DecodedClips, "_decode", count)
    window_batches(ramps, 3, cache="none").example(3, 0)
    assert asked == [8000] * 3


def test_a_probe_of_windows_lies_evenly_from_start_to_end(ramps: Manifest) -> None:
    batch = window_batches(ramps, 4).probe([3, 2, 0])
    assert starts_s(batch.waveform[0]) == [0, 3, 6, 9]
    assert starts_s(batch.waveform[1]) == [0, 0.625, 1.25, 0]  # three windows; the fourth is none
    assert batch.num_samples.tolist() == [[8000] * 4, [8000, 8000, 8000, 0], [4000, 0, 0, 0]]
    assert torch.equal(window_batches(ramps, 4, seed=3).probe([3, 2, 0]).waveform, batch.waveform)


def test_a_file_that_ends_early_has_fewer_windows_and_at_least_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(12000), 8000, subtype="FLOAT")
    clips = [Clip(str(n), "a.wav", 30.0, 8000, 1, captions=(Caption("a"),)) for n in range(4)]  # the header says 1.5 s
    manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="short")
    batch = window_batches(manifest, 3).probe([0])
    assert batch.num_samples.tolist() == [[8000, 0, 0]]
    drawn = [window_batches(manifest, 3).example(0, epoch).num_samples for epoch in range(20)]
    assert all(counts[0] >= 1 and not counts[1:].any() for counts in drawn)


def test_a_batch_is_no_wider_than_its_longest_clip_needs(ramps: Manifest) -> None:
    batch = window_batches(ramps, 100_000).probe([0, 3])
    assert batch.waveform.shape == (2, 10, 8000)  # ten seconds are ten windows of one
    assert batch.num_samples[1].tolist() == [8000] * 10


def test_fewer_windows_than_one_are_refused(ramps: Manifest) -> None:
    with pytest.raises(ConfigError, match="--windows 0: expected at least 1"):
        window_batches(ramps, 0)
