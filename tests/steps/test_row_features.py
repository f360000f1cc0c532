import dataclasses
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clapkit.data.clusters import read_clusters
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ConfigError, ManifestError, RunDirError
from clapkit.steps.row_features import CLUSTERS, check_source, keep_clusters, row_features, run_clusters
from clapkit.types import Caption, SilentReporter

BOTH = ("audio", "text")


@pytest.fixture
def encoder(model_folder):
    return DualEncoder.load(model_folder)


def features(source, manifest, *, encoder=None, trained_towers=BOTH):
    return row_features(
        source, manifest, encoder=encoder, trained_towers=trained_towers, reporter=SilentReporter(), batch_size=2, workers=1
    )


@pytest.fixture
def clusters_of(make_run, reporter, tmp_path):
    """Clusters of a run of their own, kept there; gives clusters and run."""

    def make(manifest, *, run=None, name="second", **changes):
        run = run or make_run("train", name)
        settings = {
            "address": None,
            "source": "tfidf",
            "num_clusters": None,
            "seed": 0,
            "encoder": None,
            "trained_towers": (),
            "runs_root": tmp_path / "runs",
            "reporter": reporter,
            "workers": 1,
        }
        clusters = run_clusters(manifest, run, **settings | changes)
        keep_clusters(run, clusters, manifest, seed=settings["seed"])
        return clusters, run

    return make


# Features ---------------------------------------------------------------------------------------------------------------


def test_text_features_are_the_mean_direction_of_what_the_tower_says_of_the_captions(corpus, encoder):
    vectors = features("text", corpus, encoder=encoder)
    with torch.inference_mode():
        for row, clip in enumerate(corpus):
            outputs = torch.cat([encoder.text_tower([caption.text]) for caption in clip.captions])  # [2, width]
            mean = torch.nn.functional.normalize(outputs, dim=1).mean(dim=0)
            assert vectors[row] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    assert vectors.shape == (6, encoder.text_tower.embedding_dim)


@pytest.mark.parametrize("long_captions", ["cut", "split"])
def test_text_features_read_long_captions_as_the_model_does(retag, encoder, long_captions):
    encoder.long_captions = long_captions
    begin = " ".join(["dog and rain"] * 40)
    ends = [begin, f"{begin}, then a bell"]
    manifest = retag(lambda clip: {"captions": (Caption(ends[clip.id == "toy/bell"]),)})
    vectors = features("text", manifest, encoder=encoder)
    with torch.inference_mode():
        outputs = torch.nn.functional.normalize(encoder.text_features(ends), dim=1).numpy()
    rows = [int(clip.id == "toy/bell") for clip in manifest]
    assert vectors == pytest.approx(outputs[rows], abs=1e-6)
    # Where it is cut, nobody hears the bell.
    assert np.allclose(outputs[0], outputs[1], atol=1e-6) == (long_captions == "cut")


def test_audio_features_are_what_the_tower_says_before_the_projection_head(corpus, encoder):
    with torch.no_grad():  # a head that would give another answer
        encoder.audio_head.project.weight.zero_()
    short = corpus.clips[0]
    assert short.duration_s < encoder.audio_spec.window_s  # one window
    vectors = features("audio", corpus, encoder=encoder)

    import soundfile
    import soxr

    samples, rate = soundfile.read(corpus.audio_path(short), dtype="float32")
    samples = soxr.resample(samples, rate, encoder.audio_spec.sample_rate)
    waveform = torch.zeros(1, encoder.audio_spec.window_samples)
    waveform[0, : len(samples)] = torch.from_numpy(samples)
    with torch.inference_mode():
        output = encoder.audio_tower(waveform, torch.tensor([len(samples)]))[0]
    assert vectors[0] == pytest.approx((output / output.norm()).numpy(), abs=1e-3)
    assert vectors.shape == (6, encoder.audio_tower.embedding_dim)


@pytest.mark.parametrize("source", ["tfidf", "text", "audio", "labels"])
def test_every_source_gives_unit_norm_rows_and_the_same_ones_again(corpus, encoder, source):
    vectors = features(source, corpus, encoder=encoder)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    assert np.array_equal(vectors, features(source, corpus, encoder=encoder))


@pytest.mark.parametrize("source", ["text", "audio"])
def test_the_encoder_is_in_evaluation_and_then_as_it_was(corpus, encoder, source):
    evaluated = features(source, corpus, encoder=encoder)
    encoder.train()
    encoder.freeze("text")
    before = [module.training for module in encoder.modules()]
    generator = torch.get_rng_state()
    assert np.array_equal(features(source, corpus, encoder=encoder), evaluated)
    assert [module.training for module in encoder.modules()] == before
    assert True in before
    assert False in before
    assert torch.equal(torch.get_rng_state(), generator)  # nothing was drawn, so that training is the same with and without


def test_the_encoder_is_as_it_was_after_an_error(corpus, encoder, retag):
    broken = retag(lambda clip: {"audio": "gone.wav"})
    encoder.train()
    with pytest.raises(AudioError, match="none of 6 clips"):
        features("audio", broken, encoder=encoder)
    assert all(module.training for module in encoder.modules())


def test_a_clip_that_cannot_be_decoded_is_refused(encoder, retag):
    broken = retag(lambda clip: {"audio": "gone.wav"} if clip.id == "toy/bell" else {})
    with pytest.raises(AudioError, match="--features audio: 1 of 6 training clips cannot be decoded, first toy/bell: "):
        features("audio", broken, encoder=encoder)


def test_tfidf_reads_all_captions_of_a_clip(retag):
    # "sound" is in the second caption only: clips of that word are alike, whichever caption has it.
    texts = [("x", "sound"), ("sound", "x"), ("x", "rain")]
    manifest = retag(lambda clip: {"captions": tuple(map(Caption, texts[len(clip.id) % 3]))})
    vectors = features("tfidf", manifest)
    groups = np.array([len(clip.id) % 3 for clip in manifest])
    assert vectors.shape == (6, 3)
    assert vectors[groups == 0] @ vectors[groups == 1].T == pytest.approx(1.0)
    assert (vectors[groups == 0] @ vectors[groups == 2].T < 0.9).all()


@pytest.mark.parametrize("source", ["tfidf", "text"])
def test_clips_without_captions_are_refused(retag, encoder, source):
    mute = retag(lambda clip: {"captions": ()} if clip.split == "train" else {})
    with pytest.raises(ManifestError, match="training split: 2 of 6 clips have no caption, first toy/bird; prepare"):
        features(source, mute, encoder=encoder)


def test_clips_without_labels_are_refused(retag):
    bare = retag(lambda clip: {"labels": ()} if clip.split == "train" else {})
    message = "--features labels: 2 of 6 training clips have no label, first toy/bird; prepare the data with labels, or"
    with pytest.raises(ManifestError, match=message):
        features("labels", bare)


@pytest.mark.parametrize(("source", "trained"), [("text", ()), ("audio", ()), ("text", ("audio",)), ("audio", ("text",))])
def test_features_of_an_untrained_tower_are_refused(corpus, encoder, source, trained):
    message = f"--features {source}: the {source} tower starts untrained, so its vectors say nothing; pass --init, or"
    with pytest.raises(ConfigError, match=message):
        features(source, corpus, encoder=encoder, trained_towers=trained)
    with pytest.raises(ConfigError, match=message):
        check_source(source, trained_towers=trained)


@pytest.mark.parametrize("source", ["tfidf", "labels"])
def test_features_of_what_is_written_need_no_model(corpus, source):
    check_source(source, trained_towers=())
    assert len(features(source, corpus, trained_towers=())) == 6


# Clusters ---------------------------------------------------------------------------------------------------------------


def test_clusters_are_made_kept_and_reported(corpus, clusters_of, reporter):
    clusters, run = clusters_of(corpus, num_clusters=2)
    table = pq.read_table(run.path / CLUSTERS)
    assert table.column("id").to_pylist() == [clip.id for clip in corpus]
    assert table.column("index").to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table.column("cluster").to_pylist() == clusters.cluster.tolist()
    assert table.schema.metadata == {
        b"clapkit_clusters": b"1",
        b"origin": b"k-means of tfidf features",
        b"seed": b"0",
        b"manifest": corpus.fingerprint.encode(),
    }
    largest, smallest = clusters.sizes
    assert reporter.said == [
        f"clusters: 2 of 6 clips, from k-means of tfidf features; the largest holds {largest}, the smallest {smallest}"
    ]
    assert [entry.name for entry in run.path.glob("*.tmp")] == []


def test_captions_of_one_topic_fall_in_one_cluster(retag, clusters_of):
    topics = {"dog": "a dog barks", "car": "an engine revs loudly", "rain": "heavy rain falls"}
    names = ["dog", "car", "rain", "dog", "rain", "rain"]
    order = iter(names)
    manifest = retag(lambda clip: {"captions": (Caption(topics[next(order)]),)})
    clusters, _ = clusters_of(manifest)
    assert clusters.cluster.tolist() == [{"rain": 0, "dog": 1, "car": 2}[name] for name in names]


def test_clusters_of_labels_are_the_very_sets_of_labels(retag, clusters_of):
    labels = {"toy/dog": ("dog", "loud"), "toy/rain": ("rain",), "toy/bell": ("loud", "dog"), "toy/car": ("loud",)}
    clusters, run = clusters_of(retag(lambda clip: {"labels": labels.get(clip.id, ("rain",))}), source="labels")
    assert clusters.cluster.tolist() == [1, 0, 1, 2, 0, 0]  # dog, rain, bell, car, bird, wind
    assert pq.read_schema(run.path / CLUSTERS).metadata[b"origin"] == b"their sets of labels"


@pytest.mark.parametrize("source", ["text", "audio"])
def test_clusters_are_made_from_what_a_trained_tower_says(corpus, encoder, clusters_of, source):
    clusters, _ = clusters_of(corpus, source=source, encoder=encoder, trained_towers=BOTH, num_clusters=3)
    assert clusters.num_clusters <= 3
    assert len(clusters.cluster) == 6


def test_a_resumed_run_goes_on_with_its_own_clusters(corpus, clusters_of, tmp_path):
    first, run = clusters_of(corpus, num_clusters=2, seed=0)
    written = (run.path / CLUSTERS).read_bytes()
    again, _ = clusters_of(corpus, run=run, address=str(tmp_path / "gone by now.parquet"))
    assert np.array_equal(again.cluster, first.cluster)
    assert (run.path / CLUSTERS).read_bytes() == written


def test_the_clusters_of_a_file_or_of_a_run_are_used_and_copied(corpus, clusters_of):
    first, run = clusters_of(corpus, num_clusters=2)
    run.finish({})
    for number, address in enumerate([str(run.path / CLUSTERS), str(run.path), "second", "train/second"]):
        clusters, copy = clusters_of(corpus, name=f"copy{number}", address=address)
        assert np.array_equal(clusters.cluster, first.cluster)
        assert read_clusters(copy.path / CLUSTERS, [clip.id for clip in corpus]).num_clusters == 2
        assert pq.read_schema(copy.path / CLUSTERS).metadata[b"origin"].decode().endswith(CLUSTERS)


def test_clusters_of_a_whole_corpus_serve_a_part_of_it_in_another_order(corpus, clusters_of):
    whole, run = clusters_of(corpus, num_clusters=2)
    part = type(corpus)(clips=corpus.clips[::-1][:4], root=corpus.root, name="part", fingerprint="0" * 64)
    clusters, copy = clusters_of(part, name="part", address=str(run.path / CLUSTERS))
    expected = whole.cluster[::-1][:4]
    assert np.array_equal(clusters.cluster[:, None] == clusters.cluster, expected[:, None] == expected)
    assert pq.read_table(copy.path / CLUSTERS).column("size").to_pylist() == clusters.row_sizes.tolist()


def test_clusters_of_other_clips_are_refused_and_leave_nothing(corpus, clusters_of, make_run, tmp_path):
    columns = {"id": pa.array([clip.id for clip in corpus][:4]), "cluster": pa.array([0, 0, 1, 1])}
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")
    run = make_run("train", "fresh")
    with pytest.raises(ManifestError, match="other.parquet: 2 of 6 training clips have no cluster there, first 'toy/bird'"):
        clusters_of(corpus, run=run, address=str(tmp_path / "other.parquet"))
    assert not (run.path / CLUSTERS).exists()


def test_a_run_without_clusters_is_refused(corpus, clusters_of, runs_root):
    with pytest.raises(RunDirError, match="--clusters first: train run .*first made no clusters.parquet; name a run"):
        clusters_of(corpus, address="first")


def test_a_file_that_is_not_there_is_refused(corpus, clusters_of):
    with pytest.raises(RunDirError, match="--clusters gone.parquet: no such file; name a clusters.parquet or a train run"):
        clusters_of(corpus, address="gone.parquet")


def test_a_run_that_is_not_there_is_refused(corpus, clusters_of):
    with pytest.raises(RunDirError, match="no train run 'nowhere'"):
        clusters_of(corpus, address="nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clusters": 0}, "--num-clusters 0: expected at least 1"),
        (
            {"num_clusters": 4, "address": "x.parquet"},
            "--num-clusters 4: --clusters x.parquet brings its own clusters; leave one",
        ),
        ({"num_clusters": 4, "source": "labels"}, "--num-clusters 4: --features labels makes a cluster of every set of labels"),
        ({"source": "text"}, "--features text: the text tower starts untrained"),
    ],
)
def test_options_that_contradict_each_other_are_refused(corpus, clusters_of, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        clusters_of(corpus, **changes)


def test_a_single_cluster_is_warned_of(corpus, clusters_of, reporter):
    clusters_of(corpus, num_clusters=1)
    assert reporter.warned == ["clusters: there is only one, so that they tell no clip from another; pass another --features"]


def test_clusters_of_equal_size_are_warned_of(corpus, clusters_of, reporter):
    clusters_of(corpus, source="labels")  # six labels, one clip each
    assert reporter.warned == ["clusters: all hold 1 clips, so that mmts gives every clip the midpoint of its range"]


def test_clusters_of_unequal_size_are_not_warned_of(retag, clusters_of, reporter):
    clusters_of(retag(lambda clip: {"labels": ("dog",) if clip.id == "toy/dog" else ("other",)}), source="labels")
    assert reporter.warned == []


def test_captions_are_read_in_their_languages(polyglot, corpus):
    clips = tuple(dataclasses.replace(clip, captions=(Caption("rain"), Caption("rain", "de"))) for clip in corpus.clips)
    row_features(
        "text",
        dataclasses.replace(corpus, clips=clips),
        encoder=polyglot,
        trained_towers=("text",),
        reporter=SilentReporter(),
        batch_size=4,
        workers=1,
    )
    assert set(polyglot.text_tower.seen) == {("rain", "en"), ("rain", "de")}
