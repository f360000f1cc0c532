import dataclasses

import numpy as np
import pytest
import soundfile
import torch

from clapkit import registry
from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ConfigError, ManifestError
from clapkit.metrics.windowed import count_windowed_pairs
from clapkit.objectives import window_fusion
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.tasks import windows
from clapkit.types import AudioSpec, Caption, Clip, SilentReporter

TASK = registry.build("task", "windows")
EVENTS = ("hum", "buzz", "ping", "thud", "hiss", "roar")
NOISE = len(EVENTS)


class EventEncoder:
    """Hears which event a window of a second holds: the number of the event is the value of its samples."""

    audio_spec = AudioSpec(sample_rate=8000, window_s=1.0)
    embedding_dim = NOISE + 1
    fusion = "mean"

    def encode_audio(self, waveform, num_samples):
        return torch.nn.functional.one_hot((waveform[:, 0] * 100).round().long(), NOISE + 1).float()

    def encode_text(self, captions, languages=None):
        return torch.eye(NOISE + 1)[[EVENTS.index(caption) for caption in captions]]


class Attentive(EventEncoder):
    """Listens to whatever is no noise."""

    fusion = "attention"

    def fuse_windows(self, windows, is_window):
        heard = windows.clone()
        heard[:, :, NOISE] = 0
        return heard.sum(dim=1)


def evaluate(model, manifest, **options):
    config = EvalConfig(**({"bootstrap": 50} | options))
    audio = embed_clips(model, manifest, reporter=SilentReporter()).vectors
    return TASK.run(Evaluated("x", model, "cpu", manifest, manifest, audio, config, SilentReporter()))


@pytest.fixture
def recordings(tmp_path):
    """Six recordings of noise of 4 to 9 s with one event of a second, never in the first one; two short clips."""
    clips = []
    for number, event in enumerate(EVENTS):
        sound = np.full(8000 * (4 + number), NOISE / 100)
        sound[8000 * (1 + number % 3) :][:8000] = number / 100
        soundfile.write(tmp_path / f"{event}.wav", sound, 8000, subtype="FLOAT")
        clips.append(Clip(event, f"{event}.wav", len(sound) / 8000, 8000, 1, captions=(Caption(event),)))
    for number in range(2):
        soundfile.write(tmp_path / f"short{number}.wav", np.full(8000, number / 100), 8000, subtype="FLOAT")
        clips.insert(3 * number, Clip(f"s{number}", f"short{number}.wav", 1.0, 8000, 1, captions=(Caption(EVENTS[number]),)))
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="recordings")


def test_an_event_in_the_middle_is_found_by_windows_and_not_by_the_first_one(recordings):
    result = evaluate(EventEncoder(), recordings)
    metrics = result.metrics
    for rule in ("mean", "best", "softmax"):
        assert metrics[f"windows_{rule}_t2a_R@1"] == metrics[f"windows_{rule}_a2t_R@1"] == 1
    # The first windows are all the same noise: every clip ties with every other, which counts against the model.
    assert metrics["windows_first_t2a_R@1"] == metrics["windows_first_a2t_R@1"] == 0
    assert metrics["windows_first_t2a_R@10"] == 1  # of six clips
    assert not any("attention" in name for name in metrics)
    assert evaluate(Attentive(), recordings).metrics["windows_attention_t2a_R@1"] == 1


def test_the_soft_max_is_that_of_training():
    assert windows.WINDOW_TAU == window_fusion.WINDOW_TAU
    draw = torch.Generator().manual_seed(0)
    sounds, text = (torch.nn.functional.normalize(torch.randn(*shape, 6, generator=draw), dim=-1) for shape in ((5, 3), (5,)))
    trained = window_fusion.fused_similarity(
        text.double(), sounds.double(), torch.ones(5, 3, dtype=torch.bool), window_tau=window_fusion.WINDOW_TAU
    )
    counted = count_windowed_pairs(sounds.flatten(0, 1).numpy(), [3] * 5, text.numpy(), range(5), tau=windows.WINDOW_TAU)
    np.testing.assert_allclose(counted.score, trained.diagonal(), atol=1e-7)
    higher = (trained > trained.diagonal()[:, None]).sum(dim=1)  # rows are captions
    assert counted.clips_higher.tolist() == higher.tolist()


def test_results_are_complete(recordings):
    result = evaluate(Attentive(), recordings)
    rules = ("first", "mean", "best", "softmax", "attention")
    names = [f"windows_{rule}_{way}_R@{k}" for rule in rules for way in ("t2a", "a2t") for k in (1, 10)]
    assert list(result.metrics) == names
    assert set(result.intervals) == set(result.chance) == set(result.tested) == set(names)
    assert result.chance["windows_mean_t2a_R@1"] == pytest.approx(1 / 6)
    assert result.intervals["windows_best_t2a_R@1"] == (1, 1)
    assert result.counts == {
        "t2a_num_queries": 6,
        "t2a_num_items": 6,
        "a2t_num_queries": 6,
        "a2t_num_items": 6,
        "num_clips": 6,
        "num_windows": 39,  # 4 + 5 + 6 + 7 + 8 + 9
        "max_windows_of_a_clip": 9,
        "num_one_window": 2,
    }
    assert result.warnings[0] == "windows: 2 of 8 clips are no longer than the model's window of 1 s and are left out"
    assert any("the gallery has 6 items" in warning for warning in result.warnings)
    for metric, (table, column) in result.tested.items():
        assert np.mean(result.per_query[table][column]) == pytest.approx(result.metrics[metric])
    table = result.per_query["windows_t2a"]
    assert list(table["caption"]) == list(table["id"]) == list(EVENTS)
    assert [recordings.clips[row].id for row in table["clip"]] == list(EVENTS)
    assert result.details["by_rule"]["mean"]["metrics"]["t2a_MedR"] == 1
    assert evaluate(EventEncoder(), recordings, bootstrap=0).intervals == {}


def test_the_mean_and_the_attention_are_the_vectors_that_embed_writes(attentive, corpus):
    result = evaluate(attentive, corpus)
    long = np.arange(2, 6)  # 1.5 to 3 s
    audio = embed_clips(attentive, corpus, reporter=SilentReporter()).vectors[long]
    text = attentive.encode_text([c.text for row in long for c in corpus.clips[row].captions]).detach().numpy()
    scores = (audio.astype(np.float64) @ text.T.astype(np.float64)).astype(np.float32)  # [4, 8]
    ranks = [1 + np.sum(scores[:, m] > scores[m // 2, m]) for m in range(8)]
    assert result.per_query["windows_t2a"]["attention_rank"].tolist() == ranks
    assert result.counts["num_clips"] == 4
    assert result.counts["t2a_num_queries"] == 8


def test_neither_the_order_of_the_clips_nor_the_batch_size_matters(model, corpus):
    expected = evaluate(model, corpus)
    turned = dataclasses.replace(corpus, clips=corpus.clips[::-1])
    for result in (evaluate(model, turned), evaluate(model, corpus, batch_size=3)):
        assert result.metrics == pytest.approx(expected.metrics)


def test_clips_without_captions_are_found_and_do_not_ask(recordings):
    mute = lambda clip: dataclasses.replace(clip, captions=()) if clip.id in ("hum", "thud") else clip  # noqa: E731
    result = evaluate(EventEncoder(), dataclasses.replace(recordings, clips=tuple(map(mute, recordings.clips))))
    assert (result.counts["t2a_num_queries"], result.counts["t2a_num_items"]) == (4, 6)
    assert (result.counts["a2t_num_queries"], result.counts["a2t_num_items"]) == (4, 4)
    assert result.metrics["windows_best_t2a_R@1"] == 1


def test_clips_of_unknown_length_take_part_if_they_are_long(recordings):
    unknown = tuple(dataclasses.replace(clip, duration_s=None) for clip in recordings)
    result = evaluate(EventEncoder(), dataclasses.replace(recordings, clips=unknown))
    assert (result.counts["num_clips"], result.counts["num_one_window"]) == (6, 2)
    assert result.metrics == evaluate(EventEncoder(), recordings).metrics


def test_data_that_say_nothing_are_refused(recordings, corpus):
    assert TASK.possible(recordings)
    bare = tuple(dataclasses.replace(clip, captions=()) for clip in recordings if clip.id in EVENTS)
    assert not TASK.possible(dataclasses.replace(recordings, clips=bare))
    short = tuple(clip for clip in recordings if clip.duration_s < 5)
    with pytest.raises(
        ManifestError, match="windows: 1 of 3 clips are longer than the model's window of 1 s, expected at least 2"
    ):
        evaluate(EventEncoder(), dataclasses.replace(recordings, clips=short))
    with_short = tuple(clip if clip.id not in EVENTS else dataclasses.replace(clip, captions=()) for clip in recordings)
    with pytest.raises(ManifestError, match="no clip that is longer than the model's window has a caption"):
        evaluate(EventEncoder(), dataclasses.replace(recordings, clips=with_short))
    config = EvalConfig()
    vectors_alone = Evaluated("x", None, "cpu", corpus, corpus, np.eye(6), config, SilentReporter())
    with pytest.raises(ConfigError, match="--tasks windows: needs a model"):
        TASK.run(vectors_alone)


def test_a_model_whose_attention_has_not_learned_gives_the_numbers_of_the_mean(model, corpus, tmp_path):
    model.save(tmp_path)
    fresh = DualEncoder.load(tmp_path)
    fresh.add_window_attention()
    metrics = evaluate(fresh, corpus).metrics
    for name in [name for name in metrics if "attention" in name]:
        assert metrics[name] == metrics[name.replace("attention", "mean")]
