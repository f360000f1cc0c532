import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clapkit.data.caption_features import tfidf_features
from clapkit.data.clusters import Clusters, cluster_rows, default_num_clusters, read_clusters, write_clusters
from clapkit.errors import ConfigError, ManifestError, NumericalError, ShapeError

TOPICS = (
    ("dog", "barks", "growls", "howls", "puppy"),
    ("rain", "falls", "drips", "storm", "thunder"),
    ("car", "engine", "revs", "horn", "road"),
)


def planted(num_rows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of captions of three words of one topic each, and the topics."""
    generator = np.random.default_rng(seed)
    topics = generator.integers(0, 3, num_rows)
    captions = [" ".join(generator.choice(TOPICS[topic], 3, replace=False)) for topic in topics]
    return tfidf_features(captions), topics


def random_directions(num_rows: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(num_rows, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first[:, None] == first, second[:, None] == second)


# Clusters ---------------------------------------------------------------------------------------------------------------


def test_clusters_are_numbered_by_size_and_then_by_first_row() -> None:
    # 9 three times; 4 and 7 twice, 7 first; 1 once.
    clusters = Clusters.of(np.array([7, 9, 4, 9, 1, 7, 9, 4]))
    assert clusters.cluster.tolist() == [1, 0, 2, 0, 3, 1, 0, 2]
    assert clusters.cluster.dtype == np.int32
    assert clusters.sizes.tolist() == [3, 2, 2, 1]
    assert clusters.row_sizes.tolist() == [2, 3, 2, 3, 1, 2, 3, 2]
    assert clusters.row_sizes.dtype == np.int64
    assert clusters.num_clusters == 4


def test_numbers_do_not_depend_on_what_groups_are_called() -> None:
    groups = np.array([5, 5, 2, 8, 8, 2, 3])
    assert np.array_equal(Clusters.of(groups).cluster, Clusters.of(-groups).cluster)
    again = Clusters.of(Clusters.of(groups).cluster)
    assert np.array_equal(again.cluster, Clusters.of(groups).cluster)


def test_clusters_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Clusters.of(np.array([0])).cluster = np.array([1])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(1, 1), (10, 10), (100, 16), (900, 30), (49_838, 223), (4_194_304, 2048), (10**8, 2048)]
)
def test_as_many_clusters_as_the_root_of_the_rows_within_bounds(num_rows: int, expected: int) -> None:
    assert default_num_clusters(num_rows) == expected


# k-means ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_topics_are_found(seed: int) -> None:
    features, topics = planted(60, seed=seed)
    assert same_partition(cluster_rows(features, 3, seed=seed).cluster, topics)


def test_the_same_seed_gives_the_same_clusters_and_another_seed_others() -> None:
    features = random_directions(300, 8)
    first = cluster_rows(features, 12, seed=4)
    assert np.array_equal(first.cluster, cluster_rows(features, 12, seed=4).cluster)
    assert not np.array_equal(first.cluster, cluster_rows(features, 12, seed=5).cluster)


def test_the_number_of_threads_does_not_matter() -> None:
    import faiss

    features = random_directions(400, 8)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        alone = cluster_rows(features, 8, seed=0)
        faiss.omp_set_num_threads(2)
        together = cluster_rows(features, 8, seed=0)
    finally:
        faiss.omp_set_num_threads(before)
    assert np.array_equal(alone.cluster, together.cluster)


def test_every_row_is_in_the_cluster_whose_mean_direction_is_nearest() -> None:
    features = random_directions(400, 3)
    cluster = cluster_rows(features, 5, seed=0).cluster
    means = np.stack([features[cluster == number].sum(axis=0) for number in range(5)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    # The last step of k-means assigns rows to the centroids before the last update: a few at the borders may differ.
    assert np.mean((features @ means.T).argmax(axis=1) == cluster) > 0.95


def test_equal_rows_share_a_cluster_and_limit_the_number() -> None:
    features = np.eye(4, dtype=np.float32)[[0, 1, 1, 2, 0, 1]]
    for wanted in (3, 16):
        assert cluster_rows(features, wanted, seed=0).cluster.tolist() == [1, 0, 0, 2, 1, 0]


def test_rows_of_zeros_are_a_cluster_of_their_own() -> None:
    features, topics = planted(60, seed=0)
    features[::6] = 0
    clusters = cluster_rows(features, 3, seed=0)
    assert same_partition(clusters.cluster, np.where(np.arange(60) % 6 == 0, 3, topics))


def test_rows_that_are_all_zero_are_one_cluster() -> None:
    assert cluster_rows(np.zeros((3, 2), dtype=np.float32), 2, seed=0).sizes.tolist() == [3]


def test_one_cluster_holds_everything() -> None:
    assert cluster_rows(random_directions(20, 4), 1, seed=0).sizes.tolist() == [20]


def test_small_clusters_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    cluster_rows(random_directions(60, 4), 20, seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("order", ["import torch, faiss", "import faiss, torch"])
def test_k_means_and_torch_work_in_one_process(order: str) -> None:
    script = (
        "import sys\nimport numpy as np\nfrom clapkit.data.clusters import cluster_rows\n"
        f"assert 'faiss' not in sys.modules\n{order}\n"
        "rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)\n"
        "rows /= np.linalg.norm(rows, axis=1, keepdims=True)\n"
        "torch.randn(64, 64) @ torch.randn(64, 64)\n"
        "assert cluster_rows(rows, 5, seed=0).num_clusters == 5\n"
        "assert torch.isfinite(torch.randn(64, 64) @ torch.randn(64, 64)).all()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600, env=environment)


def test_no_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match="--num-clusters 0: expected at least 1"):
        cluster_rows(random_directions(4, 2), 0, seed=0)


@pytest.mark.parametrize("features", [np.ones(3, dtype=np.float32), np.ones((0, 3), dtype=np.float32)])
def test_features_that_are_no_matrix_are_refused(features: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"features: shape .*, expected \[N, D\] with at least one row"):
        cluster_rows(features, 2, seed=0)


def test_features_of_another_norm_are_refused() -> None:
    features = random_directions(4, 2)
    features[1] *= 1.1
    with pytest.raises(ShapeError, match="features: 1 of 4 rows have a norm that is neither 1 nor 0; normalise them"):
        cluster_rows(features, 2, seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features = random_directions(4, 2)
    features[2, 0] = value
    with pytest.raises(NumericalError, match="features: 1 of 4 rows are not finite"):
        cluster_rows(features, 2, seed=0)


# clusters.parquet -------------------------------------------------------------------------------------------------------


def written(folder: Path) -> Path:
    path = folder / "clusters.parquet"
    write_clusters(path, Clusters.of(np.array([0, 0, 0, 1, 1, 2])), list("abcdef"), metadata={"seed": "7"})
    return path


def test_the_file_holds_what_the_documentation_says(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path))
    assert table.schema.names == ["index", "id", "cluster", "size"]
    assert [str(field.type) for field in table.schema] == ["int64", "string", "int32", "int64"]
    assert table.schema.metadata == {b"seed": b"7"}
    assert table.to_pydict() == {
        "index": [0, 1, 2, 3, 4, 5],
        "id": list("abcdef"),
        "cluster": [0, 0, 0, 1, 1, 2],
        "size": [3, 3, 3, 2, 2, 1],
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_clusters(written(tmp_path), list("abcdef")).cluster.tolist() == [0, 0, 0, 1, 1, 2]


def test_clips_are_found_by_id_in_any_order(tmp_path: Path) -> None:
    assert read_clusters(written(tmp_path), list("fdbace")).cluster.tolist() == [2, 1, 0, 0, 0, 1]


def test_sizes_are_counted_over_the_clips_in_use(tmp_path: Path) -> None:
    # Of the cluster of three only "a" is left, so that the one of two is the largest now.
    clusters = read_clusters(written(tmp_path), ["a", "d", "e"])
    assert clusters.cluster.tolist() == [1, 0, 0]
    assert clusters.row_sizes.tolist() == [1, 2, 2]


@pytest.mark.parametrize("id_type", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("cluster_type", [pa.int64(), pa.uint8()])
def test_a_file_of_the_users_own_needs_ids_and_clusters_only(
    tmp_path: Path, id_type: pa.DataType, cluster_type: pa.DataType
) -> None:
    columns = {"cluster": pa.array([40, 7, 40], cluster_type), "id": pa.array(list("abc"), id_type)}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    assert read_clusters(tmp_path / "own.parquet", list("abc")).cluster.tolist() == [0, 1, 0]


def test_clips_without_a_cluster_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    message = f"{path}: 2 of 3 training clips have no cluster there, first 'x'; name a file made on all of them"
    with pytest.raises(ManifestError, match=re.escape(message)):
        read_clusters(path, ["a", "x", "y"])


def refused(path: Path, columns: dict[str, pa.Array], message: str) -> None:
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ManifestError, match=re.escape(f"{path}: {message}")) as caught:
        read_clusters(path, ["a"])
    assert "\n" not in str(caught.value)


def test_ids_that_come_up_twice_are_refused(tmp_path: Path) -> None:
    columns = {"id": pa.array(list("abbcc")), "cluster": pa.array([0, 1, 1, 0, 2])}
    refused(tmp_path / "twice.parquet", columns, "2 of 5 ids are there more than once, first 'b'; keep one row a clip")


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    columns = {"clip": pa.array(["a"]), "cluster": pa.array([0])}
    refused(tmp_path / "other.parquet", columns, "no column id, found clip, cluster; expected id and cluster")


@pytest.mark.parametrize(
    "columns",
    [
        {"id": pa.array(["a"]), "cluster": pa.array(["first"])},
        {"id": pa.array(["a"]), "cluster": pa.array([0.5])},
        {"id": pa.array([1]), "cluster": pa.array([0])},
        {"id": pa.array(["a"]), "cluster": pa.array([None], pa.int32())},
        {"id": pa.array([None], pa.string()), "cluster": pa.array([0])},
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path: Path, columns: dict[str, pa.Array]) -> None:
    refused(tmp_path / "odd.parquet", columns, "columns id (")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clusters.parquet"
    path.write_text("id,cluster\na,0\n")
    with pytest.raises(ManifestError, match="cannot be read as parquet .*; name a clusters.parquet or a train run") as caught:
        read_clusters(path, ["a"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.parquet", "."])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match="cannot be read as parquet"):
        read_clusters(tmp_path / name, ["a"])


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ManifestError, match="cannot be read as parquet"):
        read_clusters(path, ["a"])
