import json

import numpy as np
import pytest

from clapkit.config import EvalConfig
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation import evidence
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.evidence import gather
from clapkit.steps.evaluation.result import TaskResult
from clapkit.steps.tasks import geometry, retrieval, zero_shot


@pytest.fixture
def evaluated(model, corpus, reporter):
    def make(manifest=corpus):
        audio = embed_clips(model, manifest, reporter=reporter, batch_size=4, precision="fp32", device="cpu", workers=1)
        return Evaluated("m", model, "cpu", manifest, manifest, audio.vectors, EvalConfig(bootstrap=0), reporter)

    return make


def run(evaluated, **tasks):
    return {name.replace("_", "-"): task.build().run(evaluated) for name, task in tasks.items()}


def test_all_that_the_page_shows_can_be_looked_up_and_heard(evaluated, corpus):
    given = evaluated()
    found = gather(given, run(given, retrieval=retrieval, zero_shot=zero_shot, geometry=geometry))
    document = json.loads(json.dumps(found.document()))
    shown = {query["clip"] for kind in document["queries"].values() for query in kind}
    shown |= {hit["clip"] for kind in ("t2a_worst", "t2a_confusing") for q in document["queries"][kind] for hit in q["hits"]}
    shown |= {mistake["clip"] for mistake in document["mistakes"]}
    assert shown
    assert shown <= set(found.sources)
    assert {str(row) for row in found.sources} == set(document["clips"])
    for row, source in found.sources.items():
        assert source.path == corpus.audio_path(corpus.clips[row])
        assert document["clips"][str(row)]["id"] == corpus.clips[row].id


def test_ranks_are_those_of_the_task(evaluated):
    given = evaluated()
    results = run(given, retrieval=retrieval)
    table = results["retrieval"].per_query["t2a"]
    for query in gather(given, results).queries["t2a_worst"]:
        place = table["caption"].index(query["caption"])
        assert query["rank"] == table["rank"][place]


def test_a_map_has_every_sound_and_its_first_caption(evaluated, corpus):
    given = evaluated()
    places = gather(given, {}).map
    assert places.sounds.shape == places.texts.shape == (len(corpus), 2)
    assert places.clip.tolist() == list(range(len(corpus)))
    assert places.labels == tuple(clip.labels[0] for clip in corpus)


def test_a_map_of_many_sounds_shows_some(evaluated, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_POINTS", 3)
    places = gather(evaluated(), {}).map
    assert len(places.sounds) == len(places.texts) == 3


def test_without_captions_the_map_shows_the_prompts_of_the_classes(evaluated, retag, corpus):
    given = evaluated(retag(lambda clip: {"captions": ()}))
    found = gather(given, run(given, zero_shot=zero_shot))
    assert len(found.map.texts) == len(corpus)  # every clip has a class of its own
    assert (found.map.clip == -1).all()
    assert found.queries == {}


def test_the_worst_mistakes_come_first(evaluated, corpus):
    ids = [clip.id for clip in corpus]
    table = {"id": ids, "clip": range(6), "target": ["a"] * 6, "predicted": ["b"] * 5 + ["a"], "rank": [2, 4, 3, 2, 2, 1]}
    result = TaskResult(per_query={"zero_shot": table | {"correct": [0, 0, 0, 0, 0, 1]}})
    mistakes = gather(evaluated(), {"zero-shot": result}).mistakes
    assert [mistake["clip"] for mistake in mistakes] == [1, 2, 0, 3, 4]
    result.per_query["zero_shot"]["margin"] = np.array([-0.1, -0.2, -0.9, -0.3, -0.4, 0.5])
    mistakes = gather(evaluated(), {"zero-shot": result}).mistakes
    assert [mistake["clip"] for mistake in mistakes] == [2, 4, 3, 1, 0]
    assert mistakes[0] == {"clip": 2, "target": "a", "predicted": "b", "margin": 0.9, "rank": 3}
