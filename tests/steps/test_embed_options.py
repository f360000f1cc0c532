import pytest

from clapkit.config import EmbedConfig
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.steps.embed_options import Shard, check, index_options, parse_shard


def test_a_shard_is_a_number_and_a_count():
    assert parse_shard("3/4") == Shard(3, 4)
    assert str(Shard(3, 4)) == "3/4"


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/4", "0/0", "1/4/2", "", "١/٤x"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match=r"--shard .*: expected i/n with i from 0 to n - 1, for example 0/4, 1/4"):
        parse_shard(text)


def test_options_belong_to_the_index():
    assert index_options(EmbedConfig(index="hnsw", options=("recall=0.9",))) == {"recall": "0.9"}
    with pytest.raises(UnknownNameError, match="option of index 'hnsw': 'legs': .*known:"):
        index_options(EmbedConfig(index="hnsw", options=("legs=4",)))
    with pytest.raises(UnknownNameError, match="unknown option -O 'recall'"):
        index_options(EmbedConfig(options=("recall=0.9",)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": "x.csv", "inputs": ("sounds",)}, "--ids x.csv: belongs to vectors; name a .npy file as the input"),
        ({"push": "sounds"}, "--push sounds: expected lance:DIR, milvus:FILE.db or milvus"),
        ({"push": "ftp://x/y"}, "unknown scheme 'ftp'"),
        ({"merge": True, "pool": "none", "window_s": 1.0}, "--merge: does not go together with --window-s: the parts say how"),
        ({"merge": True, "model": "m", "update": True}, "--merge: does not go together with --model, --update"),
        ({"update": True, "skip_existing": True}, "--update: does not go together with --skip-existing"),
        ({"shard": "0/2", "push": "lance:x"}, "--push lance:x: takes the whole table; give it to embed --merge"),
        ({"shard": "0/2", "index": "ivf"}, "--index ivf: is built over the whole table; give it to embed --merge"),
    ],
)
def test_options_that_do_not_go_together_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        check(EmbedConfig(**given))


@pytest.mark.parametrize("given", [{"merge": True}, {"update": True}, {"shard": "0/2"}, {"inputs": ("x.npy",)}])
def test_what_torchrun_cannot_share_is_refused_under_it(monkeypatch, given):
    check(EmbedConfig(**given))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="runs in one process, not under torchrun"):
        check(EmbedConfig(**given))
