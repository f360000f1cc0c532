import numpy as np
import pyarrow.parquet as pq
import pytest

from clapkit.metrics.power import minimum_detectable
from clapkit.metrics.statistics import clustered_standard_error
from clapkit.steps.comparison.per_query import clip_values, detectable, evaluated_ids, write_per_query

HITS = [[1, 0], [1, 1], [0, 0], [1, 0]]


def test_values_are_means_over_the_captions_of_a_clip(make_outcome):
    found = clip_values(make_outcome(t2a=HITS, a2t=[1, 0, 1, 0]))
    assert found["t2a_R@1"].values.tolist() == [0.5, 1, 0, 0.5]
    assert found["t2a_MeanR"].values.tolist() == [1.5, 1, 2, 1.5]
    assert found["a2t_R@1"].values.tolist() == [1, 0, 1, 0]


def test_the_hash_of_the_queries_knows_clips_captions_and_order(make_outcome):
    def queries(**other):
        return clip_values(make_outcome(t2a=HITS, **other))["t2a_R@1"].queries

    captions = [f"caption {number}" for number in range(8)]
    assert queries() == queries(run="b", captions=captions)
    others = [queries(ids=["w", "x", "y", "z"]), queries(captions=captions[::-1]), queries(captions=[*captions[:7], "other"])]
    assert len({queries(), *others}) == 4


def test_detectable_differences_are_those_of_the_queries_clustered_by_clip(make_outcome):
    hits = np.random.default_rng(0).random((40, 3)) < 0.4
    outcome = make_outcome(t2a=hits)
    found = detectable(outcome.tasks["retrieval"])
    assert found["t2a_R@1"] == minimum_detectable(hits.ravel(), np.repeat(np.arange(40), 3))


def test_few_clips_and_equal_values_show_no_detectable_difference(make_outcome):
    assert detectable(make_outcome(t2a=HITS).tasks["retrieval"]) == {}
    assert detectable(make_outcome(a2t=np.ones(20)).tasks["retrieval"]) == {}


def test_ids_are_of_all_tables(make_outcome):
    assert evaluated_ids(make_outcome(t2a=[[1]], a2t=[1, 1])) == {"clip0", "clip1"}


def test_per_query_values_of_all_models_are_stacked(make_outcome, tmp_path):
    write_per_query(tmp_path / "q.parquet", [make_outcome("a", HITS), make_outcome("b", HITS, [1, 1, 1, 1])])
    table = pq.read_table(tmp_path / "q.parquet")
    assert table.num_rows == 8 + 8 + 4
    assert table.column("run").to_pylist().count("b") == 12
    assert table.column("caption").null_count == 4
    assert table.column("R@1").to_pylist()[:4] == [1, 0, 1, 1]


def test_without_tables_the_file_is_empty(make_outcome, tmp_path):
    write_per_query(tmp_path / "q.parquet", [make_outcome(zero_shot_mAP=0.5)])
    assert pq.read_table(tmp_path / "q.parquet").num_rows == 0


def test_a_table_that_is_tested_must_be_there(make_outcome):
    outcome = make_outcome(a2t=[1, 0])
    del outcome.tasks["retrieval"].per_query["a2t"]
    with pytest.raises(KeyError, match="a2t"):
        clip_values(outcome)


def test_clips_of_one_recording_are_one_observation(make_outcome):
    outcome = make_outcome(a2t=[1, 0, 1, 1])
    columns = outcome.tasks["retrieval"].per_query["a2t"]
    columns["source"] = ["x", "x", "y", "z"]
    values = clip_values(outcome)["a2t_R@1"].values
    # Sums 1, 1, 1 of three recordings with four clips: 3/4 of each, so that the mean stays that over clips, 3/4.
    assert values.tolist() == [0.75, 0.75, 0.75]


def test_with_captions_of_different_number_the_mean_is_that_over_queries(make_outcome):
    outcome = make_outcome(a2t=[1, 1, 1, 0])
    columns = outcome.tasks["retrieval"].per_query["a2t"]
    columns["clip"] = np.array([0, 0, 0, 1])  # three hits of one clip, none of the other: 3/4, and not the mean of 1 and 0
    found = clip_values(outcome)["a2t_R@1"]
    # Two clips, four queries: sums 3 and 0 by 2/4, sizes 3 and 1 by 2/4.
    assert (found.values.tolist(), found.sizes.tolist()) == ([1.5, 0], [1.5, 0.5])
    assert found.values.mean() == outcome.metrics["a2t_R@1"] == 0.75


def test_what_observations_add_spreads_as_the_clustered_error_says(make_outcome):
    rng = np.random.default_rng(0)
    clip = np.sort(np.concatenate((np.arange(30), rng.integers(0, 30, 100))))
    outcome = make_outcome(a2t=(rng.random(130) < 0.9).astype(float))
    columns = outcome.tasks["retrieval"].per_query["a2t"]
    columns["clip"] = clip
    found = clip_values(outcome)["a2t_R@1"]
    assert found.linear.mean() == pytest.approx(found.values.mean())
    assert found.linear.std(ddof=1) / 30**0.5 == pytest.approx(clustered_standard_error(columns["R@1"], clip))
    assert found.values.std(ddof=1) > 2 * found.linear.std(ddof=1)  # of which most is that of the sizes
