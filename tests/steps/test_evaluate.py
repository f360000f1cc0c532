import json

import pyarrow.parquet as pq
import pytest

from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.steps import evaluate, inputs
from clapkit.types import Caption


@pytest.fixture
def run_eval(runs_root, make_run, reporter):
    def run(*runs, **options):
        config = EvalConfig(runs=runs, runs_root=runs_root, device="cpu", **({"bootstrap": 50} | options))
        run_dir = make_run("eval", f"run{len(list((runs_root / 'eval').glob('*')))}")
        result = evaluate.run(config, run_dir, reporter)
        run_dir.finish(result)
        return run_dir, result

    return run


@pytest.fixture
def write_data(tmp_path, retag):
    """Write a changed corpus and give the path of its manifest."""

    def write(changes):
        manifest = retag(changes)
        Manifest.write(tmp_path / "changed.jsonl", manifest.clips, root=manifest.root, name="changed")
        return str(tmp_path / "changed.jsonl")

    return write


def test_both_tasks_run_on_the_test_split_of_the_models_data(run_eval, model):
    run_dir, result = run_eval()
    metrics = result["metrics"]
    names = [f"{d}_{m}" for d in ("t2a", "a2t") for m in ("R@1", "R@5", "R@10", "MedR", "MeanR", "mAP@10", "MRR")]
    assert set(metrics) == {*names, "zero_shot_accuracy", "zero_shot_mean_per_class_recall"}
    assert metrics["t2a_R@5"] == 1  # the gallery has four clips
    assert set(result["intervals"]) == set(metrics)
    assert json.loads((run_dir.path / "results.json").read_text())["runs"][0]["tasks"]["retrieval"]["metrics"] == {
        name: metrics[name] for name in metrics if name in names
    }
    assert result["paths"] == {"results": "results.json", "per_query": "per_query.parquet"}


def test_the_protocol_is_complete(run_eval, corpus):
    _, result = run_eval()
    protocol = result["protocol"]
    assert protocol["data"] == "toy"
    assert protocol["split"] == "test"
    assert protocol["fingerprint"] == corpus.split("test").fingerprint
    assert protocol["num_clips"] == 4
    assert protocol["num_captions"] == 8
    assert protocol["audio_policy"]["window_s"] == 1.0
    assert protocol["metric_definitions"] == 1
    assert len(protocol["id_hash"]) == 64
    tasks = result["runs"][0]["tasks"]
    assert tasks["retrieval"]["counts"]["t2a_num_queries"] == 8
    assert "t2a_num_tied_queries" in tasks["retrieval"]["ties"]
    zero_shot = tasks["zero-shot"]["protocol"]
    assert zero_shot["prompts"] == ["This is a sound of {}."]
    # All classes of the data, not of the split, sorted, written with blanks.
    assert zero_shot["classes"] == sorted(f"{clip.labels[0]}" for clip in corpus)
    assert zero_shot["class_texts"][0] == "bell sound"


def test_every_query_has_a_row(run_eval):
    run_dir, result = run_eval()
    rows = pq.read_table(run_dir.path / "per_query.parquet").to_pylist()
    t2a = [row for row in rows if row["direction"] == "t2a"]
    assert [row["direction"] for row in rows] == ["t2a"] * 8 + ["a2t"] * 4 + ["zero_shot"] * 4
    assert t2a[1]["id"] == "toy/dog"
    assert t2a[1]["caption"] == "the sound of a dog"
    assert sum(row["rank"] for row in t2a) / 8 == result["metrics"]["t2a_MeanR"]
    zero_shot = [row for row in rows if row["direction"] == "zero_shot"]
    assert zero_shot[0]["target"] == "dog_sound"
    assert sum(row["correct"] for row in zero_shot) / 4 == result["metrics"]["zero_shot_accuracy"]


def test_the_batch_size_changes_no_metric(run_eval):
    assert run_eval(batch_size=1)[1]["metrics"] == run_eval(batch_size=32)[1]["metrics"]


def test_prompts_are_averaged_and_recorded(run_eval):
    prompts = ("{} can be heard", "a {}")
    _, result = run_eval(prompt=prompts, tasks="zero-shot")
    assert result["runs"][0]["tasks"]["zero-shot"]["protocol"]["prompts"] == list(prompts)
    assert list(result["runs"][0]["tasks"]) == ["zero-shot"]


def test_without_draws_there_are_no_intervals(run_eval):
    assert run_eval(bootstrap=0)[1]["intervals"] == {}


def test_clips_with_several_labels_get_map_and_accuracy_says_over_what(run_eval, write_data, reporter):
    data = write_data(lambda clip: {"labels": (*clip.labels, "any")} if clip.id == "toy/dog" else {})
    _, result = run_eval(data=data, tasks="zero-shot")
    assert "zero_shot_mAP" in result["metrics"]
    assert result["runs"][0]["tasks"]["zero-shot"]["protocol"]["accuracy_over"] == "3 clips with one label, pooled"
    assert any("3 of 4 clips with one label" in message for message in reporter.warned)


def test_clips_without_labels_are_left_out_of_zero_shot(run_eval, write_data, reporter):
    data = write_data(lambda clip: {"labels": ()} if clip.id == "toy/dog" else {})
    _, result = run_eval(data=data)
    assert result["runs"][0]["tasks"]["zero-shot"]["counts"]["num_clips"] == 3
    assert any("1 clips without labels are left out" in message for message in reporter.warned)


def test_only_possible_tasks_run_by_default(run_eval, write_data):
    assert list(run_eval(data=write_data(lambda clip: {"labels": ()}))[1]["runs"][0]["tasks"]) == ["retrieval"]
    assert list(run_eval(data=write_data(lambda clip: {"captions": ()}))[1]["runs"][0]["tasks"]) == ["zero-shot"]


def test_a_file_that_cannot_be_read_is_listed_and_said(run_eval, write_data, reporter):
    data = write_data(lambda clip: {"audio": "gone.wav"} if clip.id == "toy/dog" else {})
    run_dir, result = run_eval(data=data)
    assert result["protocol"]["num_rejected"] == 1
    assert result["protocol"]["num_clips"] == 3
    assert json.loads(run_dir.rejected_path.read_text())["item"] == "toy/dog"
    assert any("1 of 4 clips could not be embedded" in message for message in reporter.warned)


def test_several_runs_are_compared(run_eval, make_run, model_folder):
    run_dir, result = run_eval("first", str(model_folder), data="toy")
    assert len(result["runs"]) == 2
    rows = result["comparison"]["rows"]
    assert rows[0]["tests"] == {}
    assert rows[1]["tests"]["t2a_R@1"]["difference"] == 0
    assert rows[1]["tests"]["t2a_R@1"]["two_sided_p"] == 1
    for name in ("comparison.md", "comparison.csv", "comparison.json"):
        assert (run_dir.path / name).is_file()


def test_a_report_is_written_where_asked_for(run_eval):
    run_dir, result = run_eval("first", report=True)
    assert result["paths"]["report"] == "report.html"
    assert result["paths"]["plots"] == "plots"
    assert "<h1>Evaluation of first</h1>" in (run_dir.path / "report.html").read_text()
    assert (run_dir.plot_dir / "metrics.png").is_file()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": "retreival"}, UnknownNameError, "unknown task 'retreival': did you mean 'retrieval'"),
        ({"tasks": " , "}, ConfigError, "names no task"),
        ({"split": "nope"}, ManifestError, "no clip in split 'nope'"),
        ({"bootstrap": -1}, ConfigError, "--bootstrap -1"),
        ({"prompt": ("a sound",)}, ConfigError, "expected exactly one {}"),
        ({"prompt": ("{} or {}",)}, ConfigError, "expected exactly one {}"),
        ({"batch_size": 0}, ConfigError, "--batch-size 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(run_eval, options, error, message):
    with pytest.raises(error, match=message):
        run_eval(**options)


def test_tasks_that_the_data_do_not_allow_are_refused(run_eval, write_data):
    with pytest.raises(ManifestError, match="no clip has labels, which zero-shot needs"):
        run_eval(data=write_data(lambda clip: {"labels": ()}), tasks="zero-shot")
    with pytest.raises(ManifestError, match="no clip has captions, which retrieval needs"):
        run_eval(data=write_data(lambda clip: {"captions": ()}), tasks="retrieval")
    with pytest.raises(ManifestError, match="nothing to evaluate"):
        run_eval(data=write_data(lambda clip: {"captions": (), "labels": ()}))


def test_readable_clips_without_captions_or_labels_are_an_error(run_eval, write_data):
    bare = {"captions": (), "labels": ()}
    data = write_data(lambda clip: {"audio": "gone.wav"} if clip.id == "toy/dog" else bare)
    with pytest.raises(ManifestError, match="no clip that could be embedded has a caption"):
        run_eval(data=data, tasks="retrieval")
    with pytest.raises(ManifestError, match="no clip that could be embedded has a label"):
        run_eval(data=data, tasks="zero-shot")


def test_captions_are_read_in_their_languages_and_prompts_in_english(run_eval, write_data, polyglot, monkeypatch):
    monkeypatch.setattr(inputs, "load_model", lambda path, device: polyglot)
    data = write_data(lambda clip: {"captions": (Caption("rain"), Caption("rain", "de"))})
    run_eval(data=data, prompt=("the sound of {}",))
    seen = polyglot.text_tower.seen
    assert {language for text, language in seen if text == "rain"} == {"en", "de"}
    assert {language for text, language in seen if text.startswith("the sound of")} == {"en"}


def test_a_model_of_transformers_is_evaluated(run_eval, clap_folder, corpus):
    _, result = run_eval(str(clap_folder), data=str(corpus.root / "manifest.jsonl"), bootstrap=0)
    assert result["runs"][0]["model"] == str(clap_folder)
    assert result["protocol"]["audio_policy"]["sample_rate"] == 48000
    assert result["metrics"]["t2a_R@5"] == 1.0  # four clips
