import json

import pytest

from clapkit.errors import ManifestError, RunDirError


@pytest.fixture
def two_corpora(tmp_path, call_prepare, write_melody):
    """``old`` (in train and test) is prepared; ``new`` shares bytes, a sound and a source with it, and has one of its own."""
    old, new = tmp_path / "old", tmp_path / "new"
    write_melody(old / "train" / "bytes.wav", 1)
    write_melody(old / "test" / "sound.wav", 2)
    write_melody(old / "test" / "other.wav", 3)
    write_melody(new / "same-bytes.wav", 1)
    write_melody(new / "same-sound.wav", 2, gain=0.2)
    write_melody(new / "own.wav", 4)
    return call_prepare(name="old", recipe=str(old)), new


def test_recordings_of_another_run_are_left_out_and_listed(call_prepare, two_corpora):
    old, new = two_corpora
    done = call_prepare(recipe=str(new), subtract=("old",), split="train")
    assert done.ids == ["own"]
    by_bytes, by_sound = done.rejected
    assert by_bytes == {"item": "same-bytes", "reason": "same bytes as train/bytes (train) of old", "kind": "excluded"}
    assert by_sound["item"] == "same-sound"
    assert by_sound["reason"].startswith("same sound, +0.00 s as test/sound (test) of old")
    assert (done.result["num_excluded"], done.result["num_rejected"]) == (2, 0)
    assert "--subtract old: 2 of 3 clips left out" in done.reporter.said
    assert {"path": str(old.path), "fingerprint": old.result["fingerprint"]} in done.inputs
    assert not [line for line in done.reporter.warned if "left out" in line]


def test_a_split_of_another_run_can_be_left_out(call_prepare, two_corpora):
    _, new = two_corpora
    assert call_prepare(recipe=str(new), subtract=("old:test",), split="train").ids == ["own", "same-bytes"]
    assert call_prepare(recipe=str(new), subtract=("old:train",), split="train").ids == ["own", "same-sound"]
    assert call_prepare(recipe=str(new), subtract=("old:train, test",), split="train").ids == ["own"]


def test_what_the_user_left_out_is_no_failure_under_strict(call_prepare, two_corpora):
    _, new = two_corpora
    assert call_prepare(recipe=str(new), subtract=("old",), split="train", strict=True).ids == ["own"]


def test_overlaps_are_reported_by_split_and_nothing_is_left_out(call_prepare, two_corpora):
    old, new = two_corpora
    done = call_prepare(recipe=str(new), check_overlap=("old", "old:train"), split="val")
    assert done.ids == ["own", "same-bytes", "same-sound"]
    overlap, of_train = done.report["overlaps"]
    by_sound = overlap["pairs"].pop(1)
    assert overlap == {
        "run": "old",
        "fingerprint": old.result["fingerprint"],
        "compared": "bytes, recordings and sound",
        "num_clips": 2,
        "splits": {"val": {"test": 1, "train": 1}},
        "pairs": [
            {"id": "same-bytes", "split": "val", "other": "train/bytes", "other_split": "train", "reason": "same bytes"},
        ],
    }
    assert (by_sound["id"], by_sound["other"], by_sound["other_split"]) == ("same-sound", "test/sound", "test")
    assert (of_train["run"], of_train["num_clips"]) == ("old:train", 1)
    assert done.result["num_overlaps"] == 3
    assert {entry["path"] for entry in done.inputs} == {str(new), str(old.path)}
    (warning, _) = [line for line in done.reporter.warned if "holds" in line]
    assert warning == (
        "old holds 2 of these clips, too, first: same-bytes (same bytes as train/bytes); leave them out with --subtract"
    )


def test_recordings_are_compared_by_their_source_where_nobody_listened(tmp_path, call_prepare, write_melody):
    for name, key in (("a", 1), ("b", 2)):
        write_melody(tmp_path / f"{name}.wav", key)
        row = {"audio": f"{name}.wav", "caption": "Notes.", "recording": "freesound/7", "split": "test"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    given = {"check": "header", "options": ("source=recording",)}
    old = call_prepare(name="old", recipe=str(tmp_path / "a.jsonl"), **given)
    (old.path / "files.parquet").unlink()  # as versions before it left a run
    done = call_prepare(recipe=str(tmp_path / "b.jsonl"), check_overlap=("old",), **given)
    (overlap,) = done.report["overlaps"]
    assert (overlap["num_clips"], overlap["compared"]) == (1, "recordings only")
    assert overlap["pairs"][0]["reason"] == "same recording freesound/7"


def test_a_run_that_shares_nothing_is_reported_with_zero_and_without_warning(tmp_path, call_prepare, write_melody):
    write_melody(tmp_path / "old" / "a.wav", 1)
    write_melody(tmp_path / "new" / "b.wav", 2)
    call_prepare(name="old", recipe=str(tmp_path / "old"), split="test")
    done = call_prepare(recipe=str(tmp_path / "new"), check_overlap=("old",), subtract=("old",), split="test")
    (overlap,) = done.report["overlaps"]
    assert (overlap["num_clips"], overlap["splits"], overlap["pairs"]) == (0, {}, [])
    assert done.reporter.warned == []
    assert done.rejected == []


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("nothing", RunDirError, "no prepare run 'nothing'"),
        ("nothing:test", RunDirError, "no prepare run 'nothing'"),
        ("old:dev", ManifestError, "old:dev: no clip in split 'dev', splits found: test, train; name one of them"),
    ],
)
@pytest.mark.parametrize("option", ["subtract", "check_overlap"])
def test_a_run_or_split_that_is_not_there_is_refused_before_anything_is_done(
    call_prepare, two_corpora, option, address, error, message
):
    _, new = two_corpora
    with pytest.raises(error, match=message):
        call_prepare(recipe=str(new), **{option: (address,)})


def test_leaving_everything_out_is_an_error(call_prepare, two_corpora):
    old, _ = two_corpora
    with pytest.raises(ManifestError, match=r"no usable clip: 3 of 3 items left out as asked .* first: test/other: same bytes"):
        call_prepare(recipe=str(old.manifest.root), subtract=("old",))


def test_copies_in_a_run_do_not_hide_what_their_originals_were(tmp_path, call_prepare, write_melody):
    for folder in ("old", "new"):
        write_melody(tmp_path / folder / "a.wav", 1)
        write_melody(tmp_path / folder / f"{folder}.wav", 5 if folder == "old" else 6)
    call_prepare(name="old", recipe=str(tmp_path / "old"), cache_audio="flac", split="test")
    done = call_prepare(recipe=str(tmp_path / "new"), subtract=("old",), cache_audio="wav", split="test")
    assert done.ids == ["new"]
    assert done.rejected[0]["reason"] == "same bytes as a (test) of old"


def test_recordings_that_the_other_copy_lacks_are_left_out_all_the_same(tmp_path, call_prepare, write_melody):
    # Of the other corpus only one of two clips has audio here; what is tested on elsewhere is the other one.
    lists = tmp_path / "audiocaps"
    lists.mkdir()
    (lists / "test.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n1,aaaaaaaaaaa,30,A dog barks.\n2,bbbbbbbbbbb,0,It rains.\n"
    )
    write_melody(lists / "aaaaaaaaaaa.wav", 1)
    partial = call_prepare(name="partial", recipe="audiocaps", source=str(lists))
    assert [(row["kind"], row["source"]) for row in partial.rejected] == [("missing", "youtube/bbbbbbbbbbb")]
    (tmp_path / "new.csv").write_text("audio,caption,origin\nx.wav,It rains.,youtube/bbbbbbbbbbb\ny.wav,Hail.,youtube/c\n")
    write_melody(tmp_path / "x.wav", 2)
    write_melody(tmp_path / "y.wav", 3)
    given = {"recipe": str(tmp_path / "new.csv"), "options": ("source=origin",), "split": "train"}
    done = call_prepare(**given, subtract=("partial:test",))
    assert done.ids == ["y"]
    assert done.rejected[0]["reason"].startswith("same recording youtube/bbbbbbbbbbb as audiocaps/test/bbbbbbbbbbb_0 (test)")
