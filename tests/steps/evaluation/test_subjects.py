import numpy as np

from clapkit.config import EvalConfig
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.given import Given, match, read_given
from clapkit.steps.evaluation.subjects import Subject, protocol
from clapkit.steps.inputs import DataSource


def protocol_of(corpus, reporter, folder, policy):
    """Of vectors whose table says that they were made by a policy."""
    split = corpus.split("test")
    for name, rows in (("a", len(split)), ("t", sum(len(clip.captions) for clip in split))):
        np.save(folder / f"{name}.npy", np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32))
    read = read_given(f"{folder / 'a.npy'},{folder / 't.npy'}", runs_root=folder)
    given = Given("e", read.audio, read.text, "f" * 64, None, policy)
    subject = Subject("e", given.fingerprint, DataSource(corpus.root, corpus), None, given)
    found = match(given, split, data=corpus)
    evaluated = Evaluated("e", None, "cpu", corpus, split, found.audio, EvalConfig(), reporter, found.captions)
    return protocol(subject, evaluated, split=split)


def test_vectors_of_an_embed_run_have_the_protocol_of_their_model(corpus, reporter, tmp_path):
    # A model that eval runs itself has its precision beside the policy: the same numbers are no other protocol.
    found = protocol_of(corpus, reporter, tmp_path, {"pool": "mean", "precision": "bf16"})
    assert (found["audio_policy"], found["precision"]) == ({"pool": "mean"}, "bf16")


def test_pool_names_what_made_one_vector_of_the_windows(corpus, reporter, model, attentive, tmp_path):
    # Of a table, pool is the option of embed, and fusion what the model did for it.
    policy = {"window_s": 1.0, "pool": "mean", "fusion": "attention", "precision": "fp32"}
    assert protocol_of(corpus, reporter, tmp_path, policy)["audio_policy"] == {"window_s": 1.0, "pool": "attention"}
    split = corpus.split("test")
    for one, expected in ((model, "mean"), (attentive, "attention")):
        audio = embed_clips(one, split, reporter=reporter)
        evaluated = Evaluated("m", one, "cpu", corpus, split, audio, EvalConfig(), reporter)
        found = protocol(Subject("m", "f" * 64, DataSource(corpus.root, corpus), None), evaluated, split=split)
        assert found["audio_policy"]["pool"] == expected
        assert "fusion" not in found["audio_policy"]


def test_nobody_knows_how_vectors_of_other_programs_were_made(corpus, reporter, tmp_path):
    found = protocol_of(corpus, reporter, tmp_path, {})
    assert (found["audio_policy"], found["precision"]) == ({"made": "elsewhere"}, "not known")
