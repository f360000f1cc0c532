import numpy as np
import pandas as pd
import pytest
import soundfile

from clapkit import registry
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Rejection, Relevance


class FakeCorpus:
    """Lists what it is told, and knows how it should be."""

    needs_source = True
    makes_audio = False

    def __init__(self, items, description=None):
        self.items = items
        if description is not None:
            self.described = []
            self.describe = lambda clips: (self.described.append(clips), description)[1]

    def clips(self, request):
        return iter(self.items)


@pytest.fixture
def fake_corpus(monkeypatch):
    """Puts a corpus in place of every recipe."""

    def put(items, description=None):
        corpus = FakeCorpus(items, description)
        monkeypatch.setattr(registry, "build", lambda kind, name, options: corpus)
        return corpus

    return put


@pytest.fixture
def sounds(tmp_path, write_melody):
    for key in range(3):
        write_melody(tmp_path / "sounds" / f"{key}.wav", key)
    return tmp_path / "sounds"


def clips(splits):
    return [Clip(str(key), f"{key}.wav", captions=(Caption(f"note {key}"),), split=split) for key, split in enumerate(splits)]


def missing(item, split):
    return Rejection(item, f"no audio {item}.wav", "missing", split=split)


# Coverage ---------------------------------------------------------------------------------------------------------------


def test_missing_audio_is_counted_by_split_said_and_listed(call_prepare, fake_corpus, sounds):
    official = CorpusDescription(official={"train": 5, "test": 2})
    fake_corpus([*clips(["train", "train", "test"]), missing("x", "train"), missing("y", "train")], official)
    done = call_prepare(recipe="clotho", source=str(sounds))
    assert done.report["coverage"] == {
        "train": {"official": 5, "listed": 4, "found": 2, "missing": 2, "excluded": 0},
        "test": {"official": 2, "listed": 1, "found": 1, "missing": 0, "excluded": 0},
    }
    assert done.rejected == [
        {"item": "x", "reason": "no audio x.wav", "kind": "missing", "split": "train"},
        {"item": "y", "reason": "no audio y.wav", "kind": "missing", "split": "train"},
    ]
    assert [done.result[key] for key in ("num_clips", "num_rejected", "num_missing", "num_excluded")] == [3, 2, 2, 0]
    rejected_path = done.path / "rejected.jsonl"
    assert done.reporter.warned == [
        f"2 of 5 items without audio (all in {rejected_path}), first: x: no audio x.wav",
        "train: audio of 2 clips found (4 listed, 5 official); there is less to train on",
        "test: audio of 1 clips found (1 listed, 2 official); scores are of a smaller gallery",
    ]


def test_a_complete_corpus_says_nothing(call_prepare, fake_corpus, sounds):
    fake_corpus(clips(["train", "train", "test"]), CorpusDescription(official={"train": 2, "test": 1}))
    done = call_prepare(recipe="clotho", source=str(sounds))
    assert done.report["coverage"]["train"] == {"official": 2, "listed": 2, "found": 2, "missing": 0, "excluded": 0}
    assert done.reporter.warned == []


def test_a_list_that_is_cut_short_is_said_though_no_audio_is_missing(call_prepare, fake_corpus, sounds):
    fake_corpus(clips(["test", "test"]), CorpusDescription(official={"test": 3}))
    done = call_prepare(recipe="clotho", source=str(sounds))
    assert done.reporter.warned == [
        "test: audio of 2 clips found (2 listed, 3 official); scores are of a smaller gallery",
    ]


def test_clips_that_an_option_left_out_or_a_limit_did_not_reach_are_no_gap(call_prepare, fake_corpus, sounds):
    left_out = Rejection("x", "on a blacklist", "excluded", split="test")
    fake_corpus([*clips(["test", "test"]), left_out], CorpusDescription(official={"test": 3}))
    done = call_prepare(recipe="clotho", source=str(sounds))
    assert done.report["coverage"] == {"test": {"official": 3, "listed": 2, "found": 2, "missing": 0, "excluded": 1}}
    assert done.reporter.warned == []
    assert call_prepare(recipe="clotho", source=str(sounds), limit=1).reporter.warned == []


def test_a_corpus_of_which_nothing_is_known_or_missing_has_no_coverage(call_prepare, fake_corpus, sounds):
    fake_corpus(clips(["train", "train", "test"]))
    assert call_prepare(recipe="clotho", source=str(sounds)).report["coverage"] == {}


def test_a_clip_that_is_found_but_broken_is_found(call_prepare, fake_corpus, sounds):
    (sounds / "2.wav").write_bytes(b"")
    fake_corpus([*clips(["train", "train", "test"]), missing("x", "test")])
    done = call_prepare(recipe="clotho", source=str(sounds))
    assert done.report["coverage"]["test"] == {"official": None, "listed": 2, "found": 1, "missing": 1, "excluded": 0}
    assert [(row["kind"], row["split"]) for row in done.rejected] == [("missing", "test"), ("bad", "test")]


def test_a_corpus_without_any_audio_is_an_error(call_prepare, fake_corpus, sounds):
    fake_corpus([missing("x", "train")])
    with pytest.raises(ManifestError, match=r"no usable clip: 1 of 1 items without audio .* first: x: no audio x.wav"):
        call_prepare(recipe="clotho", source=str(sounds))


def test_strict_refuses_what_is_missing(call_prepare, fake_corpus, sounds):
    fake_corpus([*clips(["train"]), missing("x", "train")])
    with pytest.raises(ManifestError, match=r"--strict: 1 of 2 items without audio"):
        call_prepare(recipe="clotho", source=str(sounds), strict=True)


# What the recipe knows --------------------------------------------------------------------------------------------------


def test_facts_and_warnings_of_the_recipe_are_reported(call_prepare, fake_corpus, sounds):
    description = CorpusDescription(facts={"captions": "v1", "years": [2019]}, warnings=["Test and val look swapped."])
    corpus = fake_corpus(clips(["train", "train", "test"]), description)
    done = call_prepare(recipe="clotho", source=str(sounds))
    assert done.report["facts"] == {"captions": "v1", "years": [2019]}
    assert done.report["warnings"] == ["Test and val look swapped."]
    assert done.reporter.warned == ["Test and val look swapped."]
    assert "Test and val look swapped." in (done.path / "report.html").read_text()
    (described,) = corpus.described
    assert [clip.duration_s for clip in described] == [4.0, 4.0, 4.0]


def test_judgements_become_a_table(call_prepare, fake_corpus, sounds):
    judged = CorpusDescription(relevance=[Relevance("a note", "0"), Relevance("a note", "2", 0.5)])
    fake_corpus(clips(["test", "test", "test"]), judged)
    done = call_prepare(recipe="clotho", source=str(sounds))
    table = pd.read_parquet(done.path / "relevance.parquet")
    assert table.to_dict("list") == {"query": ["a note", "a note"], "id": ["0", "2"], "grade": [1.0, 0.5]}


def test_a_corpus_without_judgements_gets_no_table(call_prepare, fake_corpus, sounds):
    fake_corpus(clips(["test", "test", "test"]), CorpusDescription())
    assert not (call_prepare(recipe="clotho", source=str(sounds)).path / "relevance.parquet").exists()


# The page ---------------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_worst_of_every_check(tmp_path, call_prepare, write_melody):
    write_melody(tmp_path / "x" / "loud.wav", 1, gain=9.0)
    write_melody(tmp_path / "x" / "twice.wav", 2)
    write_melody(tmp_path / "x" / "once_more.wav", 2)
    soundfile.write(tmp_path / "x" / "nothing.wav", np.zeros(8000), 8000)
    (tmp_path / "x" / "broken.wav").write_bytes(b"no sound")
    done = call_prepare(recipe=str(tmp_path / "x"), split="test")
    page = (done.path / "report.html").read_text()
    for item in ("loud", "nothing", "twice", "broken"):
        assert item in page
    assert page.count("<img") >= 3
    found = {name: entry["num_items"] for name, entry in done.report["checks"].items() if entry["num_items"]}
    assert found == {"unreadable": 1, "silent": 1, "clipped": 1, "duplicate": 1}
    assert found == {name: count for name, count in done.result["checks"].items() if count}


def test_a_page_shows_clips_that_lie_beyond_the_hearing_of_its_pictures(tmp_path, call_prepare):
    samples = np.full(96000, 2.0)
    (tmp_path / "x").mkdir()
    soundfile.write(tmp_path / "x" / "fast.wav", samples * np.sign(np.sin(np.arange(96000))), 96000)
    done = call_prepare(recipe=str(tmp_path / "x"), split="test")
    assert "fast" in (done.path / "report.html").read_text()


def test_after_a_header_check_what_needs_decoding_is_absent_not_zero(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), check="header", split="test")
    assert {"silent", "clipped", "duplicate", "near_duplicate"}.isdisjoint(done.report["checks"])
    assert "too_short" in done.report["checks"]
    assert (done.report["near_duplicates"], done.report["duplicates"]) == (None, None)
    assert "report.html" in {path.name for path in done.path.iterdir()}


# Near duplicates --------------------------------------------------------------------------------------------------------


def test_one_sound_in_several_files_is_reported_the_groups_across_splits_first(tmp_path, call_prepare, write_melody):
    write_melody(tmp_path / "x" / "train" / "a.wav", 1)
    write_melody(tmp_path / "x" / "train" / "a_soft.wav", 1, gain=0.2)
    write_melody(tmp_path / "x" / "train" / "b.wav", 2)
    write_melody(tmp_path / "x" / "test" / "b_soft.wav", 2, gain=0.2)
    write_melody(tmp_path / "x" / "test" / "c.wav", 3)
    done = call_prepare(recipe=str(tmp_path / "x"))
    near = done.report["near_duplicates"]
    assert (near["num_groups"], near["num_groups_across_splits"]) == (2, 1)
    assert [sorted(group) for group in near["groups"]] == [["test/b_soft", "train/b"], ["train/a", "train/a_soft"]]
    (warning,) = done.reporter.warned
    assert warning.startswith("groups of clips that are one sound in several files: 2, of these across splits: 1, first: ")


def test_copies_of_the_same_bytes_are_no_near_duplicates(tmp_path, call_prepare, write_melody):
    for name in ("a", "b"):
        write_melody(tmp_path / "x" / f"{name}.wav", 1)
    done = call_prepare(recipe=str(tmp_path / "x"), split="test")
    assert done.report["near_duplicates"]["num_groups"] == 0
    assert done.report["duplicates"]["num_groups"] == 1
