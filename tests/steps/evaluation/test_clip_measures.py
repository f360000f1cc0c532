import numpy as np
import pytest

from clapkit.config import EvalConfig
from clapkit.errors import ManifestError
from clapkit.steps.evaluation.clip_measures import measures_of
from clapkit.steps.evaluation.context import Evaluated


def unit(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def evaluate(model, reporter):
    def evaluate(manifest, **options):
        return Evaluated("toy", model, "cpu", manifest, manifest, unit((len(manifest), 16)), EvalConfig(**options), reporter)

    return evaluate


def by_name(evaluated, rows):
    return {measure.name: measure for measure in measures_of(evaluated, np.array(rows))}


def test_retrieval_is_among_the_chosen_clips_and_their_captions(evaluate, corpus):
    evaluated, rows = evaluate(corpus), [1, 4, 5]
    vectors, text = unit((3, 16), seed=1), evaluated.captions.vectors[[2, 3, 8, 9, 10, 11]]
    found = by_name(evaluated, rows)
    assert found["t2a_R@1"].clip.tolist() == [1, 1, 4, 4, 5, 5]
    assert found["t2a_R@1"].columns["caption"][2] == "a bird is heard"
    best = (text @ vectors.T).argmax(axis=1)
    assert found["t2a_R@1"].score(vectors).tolist() == (best == [0, 0, 1, 1, 2, 2]).tolist()
    assert found["a2t_R@1"].clip.tolist() == rows
    assert found["a2t_R@1"].score(vectors).tolist() == ((vectors @ text.T).argmax(axis=1) // 2 == [0, 1, 2]).tolist()


def test_accuracy_is_that_of_the_prompts_against_all_classes(evaluate, corpus):
    evaluated = evaluate(corpus, prompt=("{} is heard",))
    classes = ["bell", "bird", "car", "dog", "rain", "wind"]
    prompts = evaluated.embed_texts([f"{name} sound is heard" for name in classes])
    assert by_name(evaluated, [0, 3])["accuracy"].score(prompts[[3, 0]]).tolist() == [1, 0]


def test_classes_of_a_file_are_used(evaluate, corpus, tmp_path):
    (tmp_path / "classes.txt").write_text("dog_sound\nrain_sound\n")
    evaluated = evaluate(corpus, classes=tmp_path / "classes.txt")
    assert "accuracy" in by_name(evaluated, [0, 1])
    with pytest.raises(ManifestError, match="label 'bell_sound' is no class of --classes"):
        by_name(evaluated, [0, 2])


def test_the_cosine_is_with_the_clip_as_it_is(evaluate, corpus):
    evaluated = evaluate(corpus)
    measure = by_name(evaluated, [2, 5])["cosine"]
    assert measure.score(evaluated.audio[[2, 5]]) == pytest.approx([1, 1])
    assert measure.score(-evaluated.audio[[2, 5]]) == pytest.approx([-1, -1])


def test_clips_without_captions_or_with_several_labels_are_left_out_of_what_needs_them(evaluate, retag):
    manifest = retag(lambda clip: {"captions": ()} if "dog" in clip.id else {"labels": ("a", "b")})
    found = by_name(evaluate(manifest), range(6))
    assert found["t2a_R@1"].clip.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert found["accuracy"].clip.tolist() == [0]
    assert found["cosine"].clip.tolist() == [0, 1, 2, 3, 4, 5]


def test_one_clip_or_one_class_leaves_the_cosine(evaluate, retag):
    manifest = retag(lambda clip: {"labels": ("sound",)})
    assert set(by_name(evaluate(manifest), [3])) == {"cosine"}
