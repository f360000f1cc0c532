import json

import numpy as np
import pytest

from clapkit.config import EvalConfig
from clapkit.errors import ConfigError, ManifestError
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.tasks import zero_shot

DEFAULT = "This is a sound of {}."


@pytest.fixture
def run(model, reporter):
    """Runs the task on audio vectors, by default near the text of each clip's label."""

    def run(manifest, *, audio=None, **options):
        config = EvalConfig(**({"bootstrap": 20} | options))
        if audio is None:
            texts = Evaluated("toy", model, "cpu", manifest, manifest, np.empty(0), config, reporter)
            audio = texts.embed_texts([f"the {clip.labels[0] if clip.labels else ''}" for clip in manifest])
        return zero_shot.build().run(Evaluated("toy", model, "cpu", manifest, manifest, audio, config, reporter))

    return run


@pytest.fixture
def write(tmp_path):
    def write(text, name="list.txt"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_each_template_alone_is_what_it_would_be_without_the_set(run, corpus, write):
    templates = ["a {}", "{} can be heard", DEFAULT]
    found = run(corpus, prompt_set=str(write("\n".join(templates))))
    alone = {t: run(corpus, prompt=(t,)).metrics["zero_shot_accuracy"] for t in templates}
    spread = found.details["prompt_sensitivity"]["zero_shot_accuracy"]
    assert spread["templates"] == alone
    assert spread["mean"] == pytest.approx(np.mean(list(alone.values())))
    assert spread["std"] == pytest.approx(np.std(list(alone.values()), ddof=1))
    assert spread["best"]["value"] == alone[spread["best"]["template"]] == max(alone.values())
    assert spread["worst"]["value"] == min(alone.values())
    assert spread["best"]["chosen_on"] == "the evaluated clips"
    assert spread["default"] == {"template": DEFAULT, "value": alone[DEFAULT]}
    assert spread["ensemble"] == found.metrics["zero_shot_accuracy"]
    assert found.metrics == run(corpus, prompt=tuple(templates)).metrics


def test_the_default_prompt_is_compared_with_though_the_set_lacks_it(run, corpus):
    spread = run(corpus, prompt=("a {}", "{}")).details["prompt_sensitivity"]["zero_shot_accuracy"]
    assert list(spread["templates"]) == ["a {}", "{}"]
    assert spread["default"]["value"] == run(corpus).metrics["zero_shot_accuracy"]


def test_one_template_has_no_spread(run, corpus):
    assert run(corpus).details["prompt_sensitivity"] == {}


def test_a_named_set_spells_classes_as_its_authors(run, retag):
    found = run(retag(lambda clip: {"labels": (clip.labels[0].title(),)}), prompt_set="msclap")
    assert found.protocol["prompts"] == ["this is the sound of {}"]
    assert found.protocol["prompt_set"] == "msclap"
    assert found.protocol["class_texts"][0] == "bell sound"


def test_a_list_of_classes_adds_classes_and_texts_in_any_order(run, corpus, write):
    lines = [f"{clip.labels[0]}\tthe {clip.labels[0]}" for clip in corpus] + ["zebra", "dog_sound\tbarking"]
    found = run(corpus, classes=write("\n".join(lines)))
    turned = run(corpus, classes=write("\n".join(lines[::-1])))
    assert found.metrics == turned.metrics
    assert found.protocol["classes"] == sorted({clip.labels[0] for clip in corpus} | {"zebra"})
    assert found.protocol["class_texts"][3] == "the dog_sound | barking"
    assert found.chance["zero_shot_accuracy"] == pytest.approx(1 / 7)
    assert "zero-shot: 6 of 7 classes have clips in the split" in found.warnings


def test_a_label_outside_the_list_is_refused(run, corpus, write):
    with pytest.raises(ManifestError, match=r"clip toy/rain: label 'rain_sound' is no class of --classes .*list.txt.* 5 of 6"):
        run(corpus, classes=write("dog_sound\n"))


def test_rows_and_matrix_name_classes_and_clips(run, retag):
    manifest = retag(lambda clip: {"labels": ()} if clip.id == "toy/dog" else {})
    found = run(manifest)
    rows = found.per_query["zero_shot"]
    assert rows["id"][0] == manifest.clips[rows["clip"][0]].id == "toy/rain"
    assert found.warnings == ["zero-shot: 1 clips without labels are left out"]
    counts = np.array(found.details["confusion"]["counts"])
    classes = found.details["confusion"]["classes"]
    assert counts.sum() == 5
    for target, predicted in zip(rows["target"], rows["predicted"], strict=True):
        assert counts[classes.index(target), classes.index(predicted)] >= 1
    assert ((rows["margin"] > 0) == rows["correct"].astype(bool)).all()
    assert np.trace(counts) / 5 == found.metrics["zero_shot_accuracy"] == np.mean(rows["correct"])
    assert [row["class"] for row in found.details["per_class"]] == classes


def test_with_very_many_classes_the_largest_confusions_are_listed(run, corpus, monkeypatch):
    monkeypatch.setattr(zero_shot, "_MAX_MATRIX", 3)
    monkeypatch.setattr(zero_shot, "_NUM_CONFUSIONS", 2)
    audio = np.tile(np.eye(16, dtype=np.float32)[0], (6, 1))  # all clips alike: five of six are wrong
    confusion = run(corpus, audio=audio).details["confusion"]
    assert confusion["num_pairs"] == 5
    assert len(confusion["largest"]) == 2
    assert confusion["largest"][0]["count"] == 1


def test_folds_are_given_and_recordings_are_drawn(run, retag):
    number = {"toy/dog": 0, "toy/rain": 1, "toy/bell": 2, "toy/car": 3, "toy/bird": 4, "toy/wind": 5}
    found = run(retag(lambda clip: {"fold": 1 + number[clip.id] // 4, "source": f"s{number[clip.id] // 2}"}))
    assert found.details["folds"][1]["num_clips"] == 4
    values = [fold["accuracy"] for fold in found.details["folds"].values()]
    assert found.metrics["zero_shot_accuracy_folds"] == pytest.approx(np.mean(values))
    assert found.counts["num_sources"] == 3
    assert found.protocol["intervals_over"] == "3 sources"
    assert set(found.intervals) == set(found.metrics) == set(found.chance)


def test_multi_label_data_say_how_much_the_prompt_moves_map(run, retag):
    found = run(retag(lambda clip: {"labels": (*clip.labels, "any")}), prompt=("a {}", "{}"))
    assert list(found.metrics) == ["zero_shot_mAP"]
    assert list(found.details["prompt_sensitivity"]) == ["zero_shot_mAP"]
    assert found.per_query == {}
    assert found.tested == {}


def test_one_class_is_no_question(run, retag):
    assert "one class only" in run(retag(lambda clip: {"labels": ("x",)})).warnings[0]


def test_results_are_json(run, corpus):
    found = run(corpus, prompt_set="ensemble")
    assert json.loads(json.dumps(found.document()))["counts"]["num_clips"] == 6


def test_impossible_questions_are_refused(run, retag, corpus):
    unlabelled = retag(lambda clip: {"labels": ()})
    assert not zero_shot.build().possible(unlabelled)
    assert zero_shot.build().possible(corpus)
    with pytest.raises(ManifestError, match="no clip that could be embedded has a label"):
        run(unlabelled)
    with pytest.raises(ConfigError, match="both name the prompts"):
        run(corpus, prompt=("a {}",), prompt_set="laion")
