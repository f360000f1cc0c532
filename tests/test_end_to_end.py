"""The whole way on the built-in corpus with tiny towers: prepare, train, embed, retrieve, eval, as a user types them."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import model_fingerprint

TINY = ("--audio-encoder", "tiny", "--text-encoder", "tiny", "--embedding-dim", "16", "--batch-size", "8", "--workers", "1")
METRICS = {f"{d}_{m}" for d in ("t2a", "a2t") for m in ("R@1", "R@5", "R@10", "MedR", "MeanR", "mAP@10", "MRR")}


@pytest.fixture(scope="module")
def calls(tmp_path_factory, clapkit_call, drawn_curves):
    """Results by command of one call of each, in a fresh folder that stays the working directory; two trained models."""
    folder = tmp_path_factory.mktemp("end_to_end")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CLAPKIT_CACHE", str(folder / "cache"))
        patch.delenv("CLAPKIT_RUNS", raising=False)
        svr = ("--loss", "svr", "--radius", "adaptive", "--epochs", "1")
        yield {
            "prepare": clapkit_call("prepare", "synth", "-O", "num_clips=60", "--workers", "1", "--json"),
            "baseline": clapkit_call("train", *TINY, "--max-steps", "2", "--name", "baseline", "--json"),
            "train": clapkit_call("train", *svr, *TINY, "--name", "svr", "--json"),
            "embed": clapkit_call("embed", "--workers", "1", "--json"),
            "retrieve": clapkit_call("retrieve", "dog barking", "--json"),
            "eval": clapkit_call("eval", "--workers", "1", "--bootstrap", "50", "--json"),
        }


def only_run(step):
    (path,) = Path("runs", step).iterdir()
    return path


def read(path):
    return json.loads(path.read_text())


# What every command leaves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["prepare", "baseline", "train", "embed", "retrieve", "eval"])
def test_every_command_ends_well_with_one_json_document(command, calls):
    result = calls[command]
    assert result.exit_code == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "place"),
    [("prepare", "prepare/*"), ("train", "train/svr"), ("embed", "embed/*"), ("eval", "eval/*")],
)
def test_result_json_is_what_json_prints_and_run_json_says_how(command, place, calls):
    (path,) = Path("runs").glob(place)
    assert read(path / "result.json") == json.loads(calls[command].stdout)
    record = read(path / "run.json")
    assert record["step"] == command
    assert record["argv"][:2] == ["clapkit", command]
    assert (record["status"], record["seed"], record["config"]["seed"]) == ("finished", 0, 0)
    assert record["started_at"] <= record["finished_at"]
    assert {"python", "torch", "numpy"} <= record["versions"].keys()
    assert record["device"] == (None if command == "prepare" else "cpu")
    assert f"run directory: {path}" in (path / "log.txt").read_text()


def test_every_run_names_its_inputs_and_the_chain_holds(calls):
    prepared, trained = only_run("prepare"), Path("runs/train/svr")
    manifest = json.loads(calls["prepare"].stdout)["fingerprint"]
    model = model_fingerprint(trained / "model")
    assert manifest == Manifest.load(prepared / "manifest.jsonl").fingerprint

    def inputs(path):
        return {os.path.abspath(entry["path"]): entry["fingerprint"] for entry in read(path / "run.json")["inputs"]}

    of_data = {os.path.abspath(prepared / "manifest.jsonl"): manifest}
    of_model = {os.path.abspath(trained / "model"): model}
    assert inputs(prepared) == {}
    assert inputs(trained) == of_data
    assert inputs(only_run("embed")) == inputs(only_run("eval")) == of_model | of_data
    assert read(only_run("embed") / "table.json")["model"]["fingerprint"] == model
    (evaluated,) = json.loads(calls["eval"].stdout)["runs"]
    assert (evaluated["run"], evaluated["model_fingerprint"]) == ("svr", model)


def test_the_newest_run_that_was_taken_is_named(calls):
    assert "model svr on cpu" in calls["embed"].stderr
    assert "model svr on cpu" in calls["eval"].stderr
    assert f"searching {only_run('embed')}" in calls["retrieve"].stderr


def test_prepare_leaves_a_manifest_of_sounds_that_exist(calls):
    path = only_run("prepare")
    manifest = Manifest.load(path / "manifest.jsonl")
    assert len(manifest) == 60
    assert set(manifest.splits) == {"train", "val", "test"}
    assert all(manifest.audio_path(clip).is_file() and len(clip.captions) == 5 and clip.labels for clip in manifest)
    header, first = (json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()[:2])
    assert header == {"clapkit_manifest": 1, "name": "synth", "root": "."}
    assert {"id", "audio", "duration_s", "sample_rate", "num_channels", "captions", "labels", "split"} <= first.keys()
    assert not Path(first["audio"]).is_absolute()
    assert (path / "rejected.jsonl").read_text() == ""
    report = read(path / "report.json")
    assert {"num_clips", "hours", "labels", "splits", "duplicates", "silent", "clipped"} <= report.keys()


def test_train_leaves_model_metrics_checkpoints_and_plots(calls):
    path = Path("runs/train/svr")
    result = json.loads(calls["train"].stdout)
    assert result["steps"] == Manifest.load(only_run("prepare") / "manifest.jsonl").splits["train"] // 8
    assert result["best_metrics"].keys() >= METRICS
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    logged = next(record for record in records if "loss" in record)
    assert {
        "step",
        "epoch",
        "lr",
        "clips_per_s",
        "data_wait_share",
        "mean_radius",
        "support_t2a",
        "support_a2t",
    } <= logged.keys()
    assert any(METRICS <= record.keys() for record in records)
    assert DualEncoder.load(path / "model").embedding_dim == 16
    assert {"model.safetensors", "config.json"} <= {file.name for file in (path / "model").iterdir()}
    assert {folder.name for folder in (path / "checkpoints").iterdir()} == {"last", "best"}
    assert {"loss.png", "retrieval.png", "radius.png"} <= {file.name for file in (path / "plots").iterdir()}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (path / "plots").iterdir())


def test_embed_leaves_rows_that_match(calls):
    path = only_run("embed")
    manifest = Manifest.load(only_run("prepare") / "manifest.jsonl")
    audio, text = np.load(path / "audio_emb/audio_emb_0.npy"), np.load(path / "text_emb/text_emb_0.npy")
    assert (audio.shape, text.shape) == ((60, 16), (300, 16))
    assert audio.dtype == text.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(audio.astype(np.float64), axis=1), 1, atol=1e-3)
    rows = pq.read_table(path / "metadata/metadata_0.parquet")
    assert rows["id"].to_pylist() == [clip.id for clip in manifest]
    assert {"id", "path", "start_s", "end_s", "caption", "labels", "split"} <= set(rows.column_names)
    assert pq.read_metadata(path / "text_metadata/metadata_0.parquet").num_rows == 300
    table = read(path / "table.json")
    assert (table["width"], table["dtype"], table["counts"]) == (16, "float16", {"audio": 60, "text": 300})


def test_eval_leaves_metrics_with_their_protocol(calls):
    path = only_run("eval")
    result = json.loads(calls["eval"].stdout)
    assert result["metrics"].keys() >= METRICS
    assert all(0 <= result["metrics"][name] <= 1 for name in METRICS if name[4:] not in ("MedR", "MeanR"))
    assert result["intervals"]["t2a_R@10"][0] <= result["metrics"]["t2a_R@10"] <= result["intervals"]["t2a_R@10"][1]
    protocol = result["protocol"]
    assert {"data", "split", "num_clips", "num_captions", "id_hash", "audio_policy"} <= protocol.keys()
    assert (protocol["split"], protocol["data"]) == ("test", "synth")
    assert read(path / "results.json")["runs"] == result["runs"]
    per_query = pq.read_table(path / "per_query.parquet").to_pylist()
    assert sum(row["direction"] == "t2a" for row in per_query) == protocol["num_captions"]


# Retrieval --------------------------------------------------------------------------------------------------------------


def hits(result):
    assert result.exit_code == 0, result.stderr
    return [answer["hits"] for answer in json.loads(result.stdout)["results"]]


def test_retrieve_answers_in_the_documented_form(calls):
    answer = json.loads(calls["retrieve"].stdout)
    assert answer.keys() == {"model", "embeddings", "num_items", "results"}
    assert answer["num_items"] == 60
    (found,) = answer["results"]
    assert found["query"] == "dog barking"
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, 11))
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    contract = {"rank", "score", "id", "path", "start_s", "end_s", "captions", "labels"}
    assert found["hits"][0].keys() == contract | {"z_score", "modality", "spans", "also"}
    assert all(Path(hit["path"]).is_file() and len(hit["captions"]) == 5 for hit in found["hits"])
    assert not Path("runs/retrieve").exists()


def test_people_get_a_table_with_the_same_hits(calls, clapkit_call):
    shown = clapkit_call("retrieve", "dog barking").stdout
    ids = [hit["id"] for hit in json.loads(calls["retrieve"].stdout)["results"][0]["hits"]]
    positions = [shown.index(id) for id in ids]
    assert positions == sorted(positions)


def test_a_sound_finds_itself(calls, clapkit_call):
    clip = Manifest.load(only_run("prepare") / "manifest.jsonl").clips[7]
    sound = only_run("prepare") / clip.audio
    ((best, *_),) = hits(clapkit_call("retrieve", "--audio", sound, "-k", "3", "--json"))
    assert best["score"] == pytest.approx(1, abs=1e-3)  # vectors are stored in float16
    assert clip.id in [hit["id"] for hit in hits(clapkit_call("retrieve", "--audio", sound, "-k", "3", "--json"))[0]]


def test_queries_come_from_a_file_and_leave_a_run(calls, clapkit_call):
    Path("queries.txt").write_text("dog barking\n\nrain falling\n")
    result = clapkit_call("retrieve", "--queries", "queries.txt", "--runs-root", "runs", "-o", "found", "-k", "2", "--json")
    assert [answer["query"] for answer in json.loads(result.stdout)["results"]] == ["dog barking", "rain falling"]
    assert read(Path("found/result.json")) == json.loads(result.stdout)
    (best, *_), _ = hits(result)
    assert best == json.loads(calls["retrieve"].stdout)["results"][0]["hits"][0]


def test_where_min_score_and_target_narrow_the_search(calls, clapkit_call):
    manifest = Manifest.load(only_run("prepare") / "manifest.jsonl")
    test_only = clapkit_call("retrieve", "rain", "-k", "99", "--where", "split == 'test'", "--json")
    assert json.loads(test_only.stdout)["num_items"] == manifest.splits["test"]
    assert {hit["id"] for hit in hits(test_only)[0]} == {clip.id for clip in manifest if clip.split == "test"}
    (everything,) = hits(clapkit_call("retrieve", "rain", "-k", "60", "--json"))
    limit = everything[4]["score"]
    (kept,) = hits(clapkit_call("retrieve", "rain", "-k", "60", "--min-score", str(limit), "--json"))
    assert kept == [hit for hit in everything if hit["score"] >= limit]
    assert hits(clapkit_call("retrieve", "rain", "--min-score", "1.5", "--json")) == [[]]
    assert hits(clapkit_call("retrieve", "rain", "--where", "split == 'nowhere'", "--json")) == [[]]
    sentence = manifest.clips[0].captions[0].text
    (captions,) = hits(clapkit_call("retrieve", sentence, "--target", "text", "-k", "1", "--json"))
    assert captions[0]["score"] == pytest.approx(1, abs=1e-3)
    assert captions[0]["captions"] == [sentence]


# Embedding other things -------------------------------------------------------------------------------------------------


@pytest.fixture
def sounds(calls, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, seconds in (("a.wav", 1), ("deep/b.flac", 2.5), ("deep/er/c.wav", 2)):
        tone = 0.3 * np.sin(0.1 * np.arange(round(8000 * seconds)))
        soundfile.write(tmp_path / name, tone, 8000)
    (tmp_path / "notes.txt.bak").write_text("no sound")
    return tmp_path


def test_a_folder_of_plain_files_is_searched_recursively(sounds, clapkit_call):
    result = clapkit_call("embed", sounds, "-o", sounds / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["counts"] == {"audio": 3}
    paths = pq.read_table(sounds / "out/metadata/metadata_0.parquet")["path"].to_pylist()
    assert paths == [str(sounds / name) for name in ("a.wav", "deep/b.flac", "deep/er/c.wav")]


def test_every_window_has_its_vector_without_pooling(sounds, clapkit_call):
    flags = ("--pool", "none", "--window-s", "1", "--store", "fp32")
    result = clapkit_call("embed", sounds / "deep", *flags, "-o", sounds / "out", "--json")
    rows = pq.read_table(sounds / "out/metadata/metadata_0.parquet").to_pylist()
    # 2.5 s in windows of 1 s: two, and one moved back to end flush; 2 s are two windows.
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0, 1), (1, 2), (1.5, 2.5), (0, 1), (1, 2)]
    assert json.loads(result.stdout)["counts"] == {"audio": 5}
    assert np.load(sounds / "out/audio_emb/audio_emb_0.npy").dtype == np.float32


def test_paths_come_from_standard_input(sounds, clapkit_call):
    listing = f"{sounds / 'deep/b.flac'}\n{sounds / 'a.wav'}\n"
    result = clapkit_call("embed", "-", "-o", sounds / "out", "--json", stdin=listing)
    assert json.loads(result.stdout)["counts"] == {"audio": 2}
    paths = pq.read_table(sounds / "out/metadata/metadata_0.parquet")["path"].to_pylist()
    assert paths == listing.split()


def test_a_text_file_of_captions_is_embedded_as_text(sounds, clapkit_call):
    (sounds / "captions.txt").write_text("A dog barks.\nIt rains.\n")
    result = clapkit_call("embed", sounds / "captions.txt", "--modality", "text", "-o", sounds / "out", "--json")
    assert json.loads(result.stdout)["counts"] == {"text": 2}
    found = hits(clapkit_call("retrieve", "It rains.", "--target", "text", "--embeddings", sounds / "out", "-k", "1", "--json"))
    assert found[0][0]["captions"] == ["It rains."]


def test_a_bad_file_among_good_ones_is_rejected_and_counted(sounds, clapkit_call):
    (sounds / "broken.wav").write_text("no sound")
    result = clapkit_call("embed", sounds, "-o", sounds / "out", "--json")
    assert (result.exit_code, json.loads(result.stdout)["num_rejected"]) == (0, 1)
    assert "warning: 1 of 4 clips could not be embedded, see rejected.jsonl" in result.stderr
    (rejected,) = [json.loads(line) for line in (sounds / "out/rejected.jsonl").read_text().splitlines()]
    assert rejected["item"].endswith("broken.wav")


def test_a_table_is_not_searched_once_its_model_has_changed(sounds, clapkit_call):
    DualEncoder.load(Path("runs/train/svr/model")).save(sounds / "model")
    clapkit_call("embed", sounds / "a.wav", "--model", sounds / "model", "-o", sounds / "out")
    DualEncoder.load(Path("runs/train/baseline/model")).save(sounds / "model")
    result = clapkit_call("retrieve", "dog barking", "--embeddings", sounds / "out")
    assert result.exit_code == 1
    assert "was made by model" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("embed again")


# Evaluation -------------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_on_the_same_queries(calls, clapkit_call, tmp_path):
    flags = ("--bootstrap", "50", "--workers", "1", "-o", tmp_path / "both")
    result = clapkit_call("eval", "baseline", "svr", *flags, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    compared = read(tmp_path / "both/comparison.json")
    assert compared == document["comparison"]
    assert compared["baseline"] == "baseline"
    assert [row["run"] for row in compared["rows"]] == ["baseline", "svr"]
    assert 0 < compared["rows"][1]["tests"]["t2a_R@10"]["two_sided_p"] <= 1
    assert "| t2a_R@1 |" in (tmp_path / "both/comparison.md").read_text()
    table = list(csv.DictReader((tmp_path / "both/comparison.csv").read_text().splitlines()))
    values = {(row["run"], row["metric"]): float(row["value"]) for row in table}
    assert values["svr", "t2a_MRR"] == json.loads(calls["eval"].stdout)["metrics"]["t2a_MRR"]


def test_evaluating_again_gives_the_same_numbers(calls, clapkit_call, tmp_path):
    again = clapkit_call("eval", "svr", "--batch-size", "5", "--bootstrap", "50", "-o", tmp_path / "again", "--json")
    first, second = json.loads(calls["eval"].stdout), json.loads(again.stdout)
    assert first["metrics"] == pytest.approx(second["metrics"], abs=1e-6)  # batches of another size round otherwise
    assert first["intervals"].keys() == second["intervals"].keys()
    for name, interval in first["intervals"].items():
        assert interval == pytest.approx(second["intervals"][name], abs=1e-6)


def test_skip_existing_repeats_the_answer_without_work(calls, clapkit_call):
    result = clapkit_call("embed", "--skip-existing", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, json.loads(calls["embed"].stdout))
    assert result.stderr == f"{only_run('embed')}: finished already, skipped\n"


# Real training and real data, when asked for ---------------------------------------------------------------------------


@pytest.mark.slow
def test_small_towers_learn_to_retrieve(workplace, clapkit_call):
    assert clapkit_call("prepare", "synth", "-O", "num_clips=600", "-q").exit_code == 0
    trained = clapkit_call("train", "--loss", "svr", "--radius", "adaptive", "--epochs", "8", "--warmup-steps", "10", "-q")
    assert trained.exit_code == 0, trained.stderr
    result = json.loads(clapkit_call("eval", "--tasks", "retrieval", "--json").stdout)
    chance = 10 / result["protocol"]["num_clips"]
    assert result["metrics"]["t2a_R@10"] > 2.5 * chance
    assert result["intervals"]["t2a_R@10"][0] > 1.5 * chance


@pytest.mark.skipif("CLAPKIT_ESC10" not in os.environ, reason="set CLAPKIT_ESC10 to the folder of ESC-10 to run this")
def test_esc10_has_400_clips_in_ten_classes(workplace, clapkit_call):
    result = clapkit_call("prepare", "esc10", os.environ["CLAPKIT_ESC10"], "--name", "esc10", "--json")
    assert result.exit_code == 0, result.stderr
    prepared = json.loads(result.stdout)
    assert (prepared["num_clips"], prepared["num_rejected"]) == (400, 0)
    assert prepared["splits"]["test"] == 80
    assert sum(prepared["splits"].values()) == 400
    assert prepared["hours"] == pytest.approx(400 * 5 / 3600, rel=0.01)
    labels = read(Path("runs/prepare/esc10/report.json"))["labels"]
    assert sorted(labels.values()) == [40] * 10
