import csv

import numpy as np
import pytest

from clapkit.errors import ConfigError, EmbeddingError, RunDirError
from clapkit.steps.evaluation.given import match, read_given

WIDTH = 16


def unit(num_rows, *, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(num_rows, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def write(tmp_path):
    """Write vectors of both modalities, with tables of ids where there are any; gives the address."""

    def files(audio, text, *, clips=None, captions=None):
        np.save(tmp_path / "a.npy", audio)
        np.save(tmp_path / "t.npy", text)
        for name, header, rows in (("a.csv", ["id"], clips), ("t.csv", ["id", "caption"], captions)):
            if rows is not None:
                with (tmp_path / name).open("w", newline="") as file:
                    csv.writer(file).writerows([header, *rows])
        return f"{tmp_path / 'a.npy'},{tmp_path / 't.npy'}"

    return files


def given(address, tmp_path):
    return read_given(address, runs_root=tmp_path / "runs")


def test_rows_without_ids_stand_for_clips_and_captions_in_their_order(write, corpus, tmp_path):
    split = corpus.split("test")
    audio, text = unit(4), unit(8, seed=1)
    found = match(given(write(audio, text), tmp_path), split, data=corpus)
    np.testing.assert_allclose(found.audio, audio, atol=1e-6)
    np.testing.assert_allclose(found.captions, text, atol=1e-6)
    assert (found.rows.tolist(), found.missing) == ([0, 1, 2, 3], [])


def test_rows_with_ids_are_matched_whatever_their_order(write, corpus, tmp_path):
    split = corpus.split("test")
    audio, text = unit(6), unit(12, seed=1)
    ids = [clip.id for clip in corpus][::-1]
    captions = [(clip.id, caption.text) for clip in corpus for caption in clip.captions][::-1]
    found = match(given(write(audio, text, clips=[[id] for id in ids], captions=captions), tmp_path), split, data=corpus)
    np.testing.assert_allclose(found.audio, audio[::-1][:4], atol=1e-6)
    np.testing.assert_allclose(found.captions, text[::-1][:8], atol=1e-6)


def test_clips_without_a_vector_are_listed_and_their_captions_left_out(write, corpus, tmp_path):
    split = corpus.split("test")
    clips = [["toy/dog"], ["toy/bell"]]
    captions = [(clip.id, caption.text) for clip in split for caption in clip.captions]
    found = match(given(write(unit(2), unit(8), clips=clips, captions=captions), tmp_path), split, data=corpus)
    assert found.rows.tolist() == [0, 2]
    assert [(rejection.item, rejection.kind) for rejection in found.missing] == [
        ("toy/rain", "missing"),
        ("toy/car", "missing"),
    ]
    np.testing.assert_allclose(found.captions, unit(8)[[0, 1, 4, 5]], atol=1e-6)


def test_the_fingerprint_is_that_of_the_vectors(write, tmp_path):
    first = given(write(unit(4), unit(8)), tmp_path).fingerprint
    assert given(write(unit(4), unit(8)), tmp_path).fingerprint == first
    assert given(write(unit(4), unit(8, seed=1)), tmp_path).fingerprint != first


@pytest.mark.parametrize(
    ("audio", "text", "message"),
    [
        (unit(3), unit(8), r"3 audio vectors without ids, expected 4, one for each of the clips in their order"),
        (unit(4), unit(7), r"7 text vectors without ids, expected 8, one for each of the captions in their order"),
        (unit(4), unit(8)[:, :8], r"audio vectors are 16 wide and text vectors 8; expected both of one model"),
        (unit(4), np.full((8, WIDTH), np.nan, np.float32), r"t\.npy: vector of row 0 is not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(audio, text, message, write, corpus, tmp_path):
    with pytest.raises(EmbeddingError, match=message):
        match(given(write(audio, text), tmp_path), corpus.split("test"), data=corpus)


def captions_of(split):
    return [(clip.id, caption.text) for clip in split for caption in clip.captions]


def test_a_caption_of_no_clip_is_refused(write, corpus, tmp_path):
    split = corpus.split("test")
    address = write(unit(4), unit(9), clips=[[clip.id] for clip in split], captions=[*captions_of(split), ("toy/cat", "a cat")])
    with pytest.raises(EmbeddingError, match="row 8 of the text vectors is of clip 'toy/cat', which is not in toy"):
        match(given(address, tmp_path), split, data=corpus)


def test_a_caption_without_a_vector_is_named(write, corpus, tmp_path):
    split = corpus.split("test")
    address = write(unit(4), unit(7), clips=[[clip.id] for clip in split], captions=captions_of(split)[1:])
    with pytest.raises(EmbeddingError, match="no text vector of clip toy/dog, caption 'a dog is heard'"):
        match(given(address, tmp_path), split, data=corpus)


def test_vectors_of_other_clips_are_refused(write, corpus, tmp_path):
    address = write(unit(1), unit(8), clips=[["other/x"]])
    with pytest.raises(EmbeddingError, match="no audio vector is of a clip of toy; embed these clips, or name other --data"):
        match(given(address, tmp_path), corpus.split("test"), data=corpus)


@pytest.mark.parametrize("address", ["a.npy", "a.npy,b.npy,c.npy", "a.npy,b.csv"])
def test_two_files_are_expected(address, tmp_path):
    with pytest.raises(ConfigError, match=r"expected AUDIO\.npy,TEXT\.npy or an embed run"):
        given(address, tmp_path)


def test_a_run_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RunDirError):
        given("nowhere", tmp_path)
