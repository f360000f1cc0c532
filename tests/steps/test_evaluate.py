import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ConfigError, ManifestError, MetricError, UnknownNameError
from clapkit.steps import evaluate, inputs
from clapkit.steps.embedding import embed_clips, embed_texts
from clapkit.steps.lineage import lineage_of, write_lineage
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
    shown = {name for name in metrics if name.startswith(("t2a_", "a2t_", "zero_shot_"))}
    assert shown == {*names, "zero_shot_accuracy", "zero_shot_mean_per_class_recall"}
    assert {"modality_gap", "alignment", "uniformity_audio", "uniformity_text"} <= set(metrics)
    assert metrics["t2a_R@5"] == 1  # the gallery has four clips
    assert shown <= set(result["intervals"])
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
    assert [row["direction"] for row in rows] == ["t2a"] * 8 + ["a2t"] * 4 + ["zero_shot"] * 4 + ["geometry"] * 4
    assert t2a[1]["id"] == "toy/dog"
    assert t2a[1]["caption"] == "the sound of a dog"
    assert sum(row["rank"] for row in t2a) / 8 == result["metrics"]["t2a_MeanR"]
    zero_shot = [row for row in rows if row["direction"] == "zero_shot"]
    assert zero_shot[0]["target"] == "dog_sound"
    assert sum(row["correct"] for row in zero_shot) / 4 == result["metrics"]["zero_shot_accuracy"]


def test_the_batch_size_changes_no_metric(run_eval):
    assert run_eval(batch_size=1)[1]["metrics"] == pytest.approx(run_eval(batch_size=32)[1]["metrics"], abs=1e-6)


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
    assert list(run_eval(data=write_data(lambda clip: {"labels": ()}))[1]["runs"][0]["tasks"]) == ["retrieval", "geometry"]
    assert list(run_eval(data=write_data(lambda clip: {"captions": ()}))[1]["runs"][0]["tasks"]) == ["zero-shot", "geometry"]


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


def test_runs_with_other_test_sets_are_refused_before_anything_is_embedded(run_eval, trained, make_run, corpus, monkeypatch):
    other = make_run("train", "other", config={"train_split": "train", "val_split": "train"})
    manifest = Manifest.write(other.path / "data.jsonl", corpus.clips[1:], root=corpus.root, name="smaller")
    other.add_input(other.path / "data.jsonl", manifest.fingerprint)
    DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": ["a"]}).save(other.model_dir)
    other.finish({})
    monkeypatch.setattr(inputs, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=r"other: its data are 3 test clips of smaller, those of known 4 of toy; .* --data"):
        run_eval(trained(), "other")


def test_a_baseline_that_is_not_evaluated_is_refused_before_anything_is_embedded(run_eval, trained, monkeypatch):
    monkeypatch.setattr(inputs, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(UnknownNameError, match="'frist': did you mean 'first'"):
        run_eval(trained(), "first", baseline="frist")


@pytest.mark.parametrize(
    ("headline", "error", "message"),
    [
        (("t2a_R@2",), UnknownNameError, "unknown --headline metric 't2a_R@2'"),
        (("modality_gap",), ConfigError, "--headline modality_gap: neither end of it is the better one"),
    ],
)
def test_a_headline_that_cannot_be_claimed_is_refused_after_the_first_model(headline, error, message, run_eval, trained):
    with pytest.raises(error, match=message):
        run_eval(trained(), "first", headline=headline)


# What a reader must know -------------------------------------------------------------------------------------------------


def marks(result):
    return [mark["kind"] for mark in result["runs"][0]["marks"]]


@pytest.fixture
def trained(make_run, runs_root, corpus, model_folder):
    """A finished train run with a lineage: trained and selected on the splits that are given."""

    def make(*, train_split="train", val_split="train"):
        run = make_run("train", "known", config={"train_split": train_split, "val_split": val_split, "seed": 0})
        path = runs_root / "prepare/toy/manifest.jsonl"
        run.add_input(path, corpus.fingerprint)
        DualEncoder.load(model_folder).save(run.model_dir)
        data = inputs.DataSource(path, corpus)
        write_lineage(run.model_dir, lineage_of([data], train_split=train_split, val_split=val_split))
        run.finish({})
        return "known"

    return make


def test_an_honest_evaluation_has_no_mark(run_eval, trained, reporter):
    _, result = run_eval(trained(), strict=True)
    assert marks(result) == []


def test_a_model_that_was_trained_on_the_clips_is_marked(run_eval, trained, reporter):
    _, result = run_eval(trained(train_split="test"))
    assert marks(result) == ["seen_clips"]
    assert any("was trained on 4 of the 4 clips" in warning for warning in reporter.warned)


def test_a_model_that_was_selected_on_the_clips_is_marked(run_eval, trained):
    assert marks(run_eval(trained(val_split="test"))[1]) == ["selected_on_test"]


def test_a_model_without_a_lineage_is_marked(run_eval, model_folder):
    _, result = run_eval(str(model_folder), data="toy", strict=True)  # that cannot be put right, so that it is not refused
    assert marks(result) == ["unknown_training"]


def test_a_clip_that_cannot_be_embedded_makes_the_split_incomplete(run_eval, trained, write_data):
    data = write_data(lambda clip: {"audio": "gone.wav"} if clip.id == "toy/dog" else {})
    assert marks(run_eval(trained(), data=data)[1]) == ["incomplete_split"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"train_split": "test"}, r"--strict: the model was trained on 4 of the 4 clips .* leave --strict out"),
        ({"val_split": "test"}, r"--strict: the model was chosen among its checkpoints by 4 of the 4 clips"),
    ],
)
def test_strict_refuses_before_anything_is_embedded(made, message, run_eval, trained, monkeypatch):
    monkeypatch.setattr(inputs, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(ManifestError, match=message):
        run_eval(trained(**made), strict=True)


def test_strict_refuses_a_split_with_holes(run_eval, trained, write_data):
    data = write_data(lambda clip: {"audio": "gone.wav"} if clip.id == "toy/dog" else {})
    with pytest.raises(ManifestError, match="--strict: 1 of 4 clips could not be embedded"):
        run_eval(trained(), data=data, strict=True)


def test_models_that_were_measured_otherwise_are_marked(run_eval, trained, reporter):
    # The second model knows its own data, in which a clip is missing.
    _, result = run_eval(trained(), "first")
    assert result["runs"][1]["protocol"] == result["runs"][0]["protocol"]
    assert [mark["kind"] for mark in result["runs"][1]["marks"]] == ["unknown_training"]


def test_a_task_that_the_data_turn_out_not_to_allow_is_left_out_of_all_tasks(run_eval, write_data, reporter):
    one_class = write_data(lambda clip: {"labels": ("dog",)})
    with pytest.raises(MetricError, match="probe: 1 class"):
        run_eval(data=one_class, tasks="probe")
    _, result = run_eval(data=one_class, tasks="all,cost", bootstrap=0)
    assert "cost" in result["runs"][0]["tasks"]
    assert "probe" not in result["runs"][0]["tasks"]
    assert any("--tasks all: probe is left out: probe: 1 class" in message for message in reporter.warned)


def test_every_clip_may_be_evaluated(run_eval):
    _, result = run_eval(split="all", tasks="retrieval")
    assert (result["protocol"]["num_clips"], result["protocol"]["split"]) == (6, "all")


# Embeddings, baselines and lists ------------------------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path, model, corpus, reporter):
    """Vectors that another program might have made of the test split; they are those of the model."""
    split = corpus.split("test")
    np.save(tmp_path / "a.npy", embed_clips(model, split, reporter=reporter).vectors)
    texts = [caption.text for clip in split for caption in clip.captions]
    np.save(tmp_path / "t.npy", embed_texts(model, texts, reporter=reporter))
    return f"{tmp_path / 'a.npy'},{tmp_path / 't.npy'}"


def test_vectors_of_another_program_are_judged_by_the_same_ruler(run_eval, given):
    _, ours = run_eval(tasks="retrieval")
    _, theirs = run_eval(embeddings=given, data="toy", tasks="retrieval")
    assert theirs["metrics"] == pytest.approx(ours["metrics"], abs=1e-6)
    assert theirs["runs"][0]["run"] == given
    assert theirs["protocol"]["audio_policy"] == {"made": "elsewhere"}
    assert marks(theirs) == ["unknown_training"]


def test_vectors_are_compared_with_a_model(run_eval, given):
    _, result = run_eval("first", embeddings=given, data="toy", tasks="retrieval")
    assert [row["run"] for row in result["comparison"]["rows"]] == ["first", given]
    assert result["comparison"]["rows"][1]["tests"]["t2a_R@1"]["difference"] == 0


def test_tasks_that_embed_are_left_out_with_vectors_alone(run_eval, given):
    assert list(run_eval(embeddings=given, data="toy")[1]["runs"][0]["tasks"]) == ["retrieval", "geometry"]
    with pytest.raises(
        ConfigError, match="--tasks zero-shot: embeds something of its own, and --embeddings gives vectors only"
    ):
        run_eval(embeddings=given, data="toy", tasks="zero-shot")


def test_vectors_do_not_say_what_they_are_of(run_eval, given):
    with pytest.raises(ConfigError, match="and --clean-captions: the captions are embedded already; leave one out"):
        run_eval(embeddings=given, data="toy", clean_captions=True)
    with pytest.raises(ConfigError, match="does not say which clips the vectors are of; name them with --data"):
        run_eval(embeddings=given)


def test_the_baseline_may_be_any_run(run_eval, trained):
    _, result = run_eval(trained(), "first", baseline="first", tasks="retrieval")
    assert result["comparison"]["baseline"] == "first"
    assert result["comparison"]["rows"][1]["tests"] == {}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"baseline": "first"}, ConfigError, "--baseline first: there is nothing to compare it with; name several runs"),
        ({"submission": 99}, ConfigError, "--submission 99: the evaluated clips are 4 files; choose 1 to 4"),
    ],
)
def test_options_that_do_not_fit_one_run_are_refused(options, error, message, run_eval):
    with pytest.raises(error, match=message):
        run_eval("first", **options)


def test_a_submission_lists_files_for_every_caption(run_eval):
    run_dir, result = run_eval(submission=2, tasks="retrieval")
    lines = (run_dir.path / result["paths"]["submission"]).read_text().splitlines()
    assert lines[0] == "caption,file_name_1,file_name_2"
    assert len(lines) == 9
    assert lines[1].startswith("a dog is heard,")
    assert all(line.count(".wav") == 2 for line in lines[1:])


def test_a_submission_needs_captions(run_eval, write_data):
    with pytest.raises(ManifestError, match="--submission 2: no clip has a caption"):
        run_eval(data=write_data(lambda clip: {"captions": ()}), submission=2)


def test_a_submission_is_of_one_model(run_eval, model_folder):
    with pytest.raises(ConfigError, match="--submission 2: is of one model"):
        run_eval("first", str(model_folder), data="toy", submission=2)


def test_captions_are_cleaned_where_asked(run_eval, write_data):
    data = write_data(lambda clip: {"captions": tuple(Caption(f"{c.text.upper()}!!") for c in clip.captions)})
    run_dir, result = run_eval(data=data, clean_captions=True, tasks="retrieval")
    rows = pq.read_table(run_dir.path / "per_query.parquet").to_pylist()
    assert rows[0]["caption"] == "a dog is heard"
    assert result["protocol"]["captions"] == "lower case, no punctuation"


def test_a_wrong_relevance_table_is_found_before_anything_is_embedded(run_eval, tmp_path, monkeypatch):
    (tmp_path / "relevant.csv").write_text("query,clip\na dog is heard,toy/cat\n")
    monkeypatch.setattr(inputs, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(ManifestError, match="toy/cat"):
        run_eval(relevance=tmp_path / "relevant.csv")
