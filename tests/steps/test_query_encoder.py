import numpy as np
import pytest

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.errors import AudioError, ConfigError, EmbeddingError, NumericalError, ShapeError
from clapkit.index.table import TableInfo
from clapkit.steps import inputs
from clapkit.steps.embedding import embed_clips, embed_texts
from clapkit.steps.queries import Part
from clapkit.steps.query_encoder import QueryEncoder
from clapkit.types import Clip, SilentReporter

from .conftest import NAMES, make_table, unit_vectors

WIDTH = 16


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    """A model whose text tower has learned words."""
    folder = tmp_path_factory.mktemp("small")
    sentences = [f"a {name} is heard" for name in NAMES]
    DualEncoder("tiny", "small", embedding_dim=WIDTH, text_options={"captions": sentences}).save(folder)
    return folder


@pytest.fixture
def make_encoder(model_folder, reporter):
    """Makes an encoder for a table of the tiny model, unless told otherwise."""

    def make(*tables, folder=model_folder, width=WIDTH, policy=None, language=None, **options):
        path, fingerprint = (str(folder), model_fingerprint(folder)) if folder else ("", "")
        info = TableInfo(width, "float32", {"audio": 1}, path, fingerprint, audio_policy=policy or {})
        return QueryEncoder(info, language=language, device="cpu", reporter=reporter, tables=tables, **options)

    return make


@pytest.fixture
def no_torch(monkeypatch):
    def refuse(folder, device):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(inputs, "load_model", refuse)


def like(name):
    return Part("like", name)


# Items and vectors ------------------------------------------------------------------------------------------------------


def test_an_item_is_known_by_id_and_by_path(make_encoder, no_torch, monkeypatch):
    vectors = unit_vectors(3)
    encoder = make_encoder(make_table(vectors), folder=None)
    monkeypatch.chdir("/")
    found = encoder([like("1"), like("/sounds/2.wav"), like("sounds/./0.wav")])
    np.testing.assert_allclose([*found.values()], vectors[[1, 2, 0]], atol=1e-6)


def test_an_item_is_known_by_the_end_of_its_path(make_encoder, no_torch):
    table = make_table(np.eye(3), paths=["/a/dog/1.wav", "/a/cat/1.wav", None])
    (vector,) = make_encoder(table, width=3)([like("cat/1.wav")]).values()
    np.testing.assert_array_equal(vector, [0, 1, 0])
    message = "^--like 1.wav: 2 files end so, such as /a/dog/1.wav and /a/cat/1.wav; write more of the path$"
    with pytest.raises(EmbeddingError, match=message):
        make_encoder(table, width=3)([like("1.wav")])
    with pytest.raises(EmbeddingError, match="^--like at/1.wav: no item"):  # whole names only
        make_encoder(table, width=3)([like("at/1.wav")])


def test_an_item_of_several_windows_is_their_mean(make_encoder):
    # (1, 0), (0, 1): mean (0.5, 0.5), norm sqrt(0.5)
    table = make_table(np.eye(2), ids=["a", "a"], spans=[(0, 1), (1, 2)])
    (vector,) = make_encoder(table, width=2)([like("a")]).values()
    np.testing.assert_allclose(vector, [0.70710678, 0.70710678], atol=1e-7)
    opposite = make_table([[1, 0], [-1, 0]], ids=["a", "a"], spans=[(0, 1), (1, 2)])
    with pytest.raises(NumericalError, match="--like: a has norm 0, expected a direction"):
        make_encoder(opposite, width=2)([like("a")])


@pytest.mark.parametrize("store", [np.float32, np.float16])
def test_an_item_of_several_windows_is_the_query_that_its_sound_is(make_encoder, attentive, corpus, tmp_path, store):
    """Where the model weighs windows, too; without a fusion of its own no model is loaded."""
    attentive.save(tmp_path / "attentive")
    file = str(corpus.root / "wind.wav")
    clips = Manifest((Clip("x", file),), root=corpus.root, name="", fingerprint="")
    cut = {"window_s": 0.5, "hop_s": 0.25}
    windows = embed_clips(attentive, clips, reporter=SilentReporter(), pool="none", **cut)
    columns = {"ids": ["x"] * len(windows.vectors), "paths": [file] * len(windows.vectors), "spans": windows.spans}
    table = make_table(windows.vectors, **columns)
    table.vectors = windows.vectors.astype(store)
    encoder = make_encoder(table, folder=tmp_path / "attentive", policy={**cut, "pool": "none"})
    item, sound = encoder([like("x"), Part("audio", file)]).values()
    np.testing.assert_allclose(item, sound, atol=1e-6 if store is np.float32 else 4e-4)
    pooled = embed_clips(attentive, clips, reporter=SilentReporter(), **cut).vectors[0]
    np.testing.assert_array_equal(sound, pooled)
    mean = windows.vectors.mean(axis=0)
    assert np.abs(item - mean / np.linalg.norm(mean)).max() > 1e-3
    assert item @ item == pytest.approx(1)


def test_windows_of_a_model_without_a_fusion_need_no_model(make_encoder, no_torch):
    table = make_table(np.eye(16)[:2], ids=["a", "a"], spans=[(0, 1), (1, 2)])
    (vector,) = make_encoder(table, policy={"pool": "none"})([like("a")]).values()
    np.testing.assert_allclose(vector[:2], [0.70710678, 0.70710678], atol=1e-7)


@pytest.mark.parametrize(("modality", "pool"), [("text", "none"), ("audio", "mean")])
def test_captions_and_pooled_clips_of_one_item_are_averaged(make_encoder, attentive, no_torch, tmp_path, modality, pool):
    attentive.save(tmp_path / "attentive")
    table = make_table(np.eye(16)[:2], modality=modality, ids=["a", "a"])
    (vector,) = make_encoder(table, folder=tmp_path / "attentive", policy={"pool": pool})([like("a")]).values()
    np.testing.assert_allclose(vector[:2], [0.70710678, 0.70710678], atol=1e-7)


def test_items_without_a_path_are_found_by_id(make_encoder):
    table = make_table(np.eye(2), paths=[None, None])
    (vector,) = make_encoder(table, width=2)([like("1")]).values()
    np.testing.assert_array_equal(vector, [0, 1])


@pytest.mark.parametrize("name", ["it's", 'a "b"', "back\\slash", "new\nline", "größe\u2028", "' or id != '", "x" * 5000])
def test_any_name_is_looked_for_as_it_is(make_encoder, name):
    table = make_table(np.eye(2), ids=["other", name])
    (vector,) = make_encoder(table, width=2)([like(name)]).values()
    np.testing.assert_array_equal(vector, [0, 1])


def test_all_tables_are_looked_at_for_an_item(make_encoder):
    tables = make_table(np.eye(2)), make_table(np.eye(2), modality="text", ids=["x", "y"])
    (vector,) = make_encoder(*tables, width=2)([like("y")]).values()
    np.testing.assert_array_equal(vector, [0, 1])


def test_an_unknown_item_is_refused(make_encoder):
    with pytest.raises(EmbeddingError, match="^--like 7: no item of the table has this id or path; an id is what hits show"):
        make_encoder(make_table(unit_vectors(3)))([like("7")])
    with pytest.raises(EmbeddingError, match="^--like 7: an engine does not give vectors back; pass the sound to --audio$"):
        make_encoder()([like("7")])


def test_vectors_are_those_of_their_rows(make_encoder, no_torch):
    vectors = unit_vectors(2)
    found = make_encoder(vectors=vectors)([Part("vector", "1"), Part("vector", "0")])
    np.testing.assert_array_equal([*found.values()], vectors[::-1])


def test_vectors_of_another_width_are_refused(make_encoder):
    with pytest.raises(ShapeError, match="^--vectors: width 8, the table has 16; pass vectors of its model$"):
        make_encoder(vectors=unit_vectors(1, width=8))([Part("vector", "0")])


# Words ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [Part("text", "dog"), Part("audio", "dog.wav")])
def test_words_and_sounds_need_a_model(make_encoder, part):
    with pytest.raises(EmbeddingError, match="the model that made these vectors is not known; name it with --model"):
        make_encoder(folder=None)([part])


def test_words_of_a_tower_of_ours_are_embedded_without_torch(make_encoder, no_torch, model):
    devices = []
    texts = ["a dog is heard", "rain", "a dog is heard"]
    found = make_encoder(on_device=devices.append)([Part("text", text) for text in texts])
    expected = embed_texts(model, texts[:2], reporter=SilentReporter())
    np.testing.assert_allclose([*found.values()], expected, atol=2e-6)
    assert devices == ["cpu"]


def test_known_words_are_not_embedded_again(make_encoder, no_torch, monkeypatch):
    encoder = make_encoder()
    first = encoder([Part("text", "rain")])
    monkeypatch.setattr(QueryEncoder, "_encode_lightly", lambda self, light, texts: pytest.fail(f"embeds {texts}"))
    again = make_encoder()([Part("text", "rain")])
    np.testing.assert_array_equal([*again.values()], [*first.values()])


def test_a_language_that_a_tower_of_ours_does_not_read_is_refused_without_torch(make_encoder, no_torch):
    with pytest.raises(ConfigError, match="--lang de: the model .* reads all languages alike and is told none"):
        make_encoder(language="de")([Part("text", "Hund")])


def test_words_that_the_model_never_saw_are_told(make_encoder, no_torch, small_folder, reporter):
    make_encoder(folder=small_folder)([Part("text", text) for text in ("a dog", "кошка", "rain кошка")])
    (warning,) = reporter.warned
    assert warning.startswith("query 'кошка': the model has learned none of its words")


def test_queries_that_are_cut_are_counted(make_encoder, no_torch, reporter):
    long = "dog " * 40
    make_encoder()([Part("text", text) for text in (long, "rain", long + "rain")])
    message = "2 of 3 queries are longer than the 32 tokens that the model reads; their ends are not embedded"
    assert reporter.warned == [message]


def test_a_long_query_to_a_model_that_splits_captions_is_embedded_whole_without_torch(
    make_encoder, no_torch, model_folder, reporter, tmp_path
):
    model = DualEncoder.load(model_folder)
    model.long_captions = "split"
    model.save(tmp_path / "split")
    texts = ["dog and rain, " * 20 + "then a bell", "a dog is heard"]
    found = make_encoder(folder=tmp_path / "split")([Part("text", text) for text in texts])
    np.testing.assert_allclose([*found.values()], embed_texts(model, texts, reporter=SilentReporter()), atol=2e-6)
    assert reporter.warned == []
    assert model.captions_split == 1


# Sounds -----------------------------------------------------------------------------------------------------------------


def test_sounds_are_cut_as_the_table_says(make_encoder, model, corpus):
    file = str(corpus.root / "wind.wav")
    policy = {"window_s": 0.5, "hop_s": 0.25, "pool": "none"}
    (vector,) = make_encoder(policy=policy)([Part("audio", file)]).values()
    clips = Manifest((Clip("x", file),), root=corpus.root, name="", fingerprint="")
    expected = embed_clips(model, clips, reporter=SilentReporter(), window_s=0.5, hop_s=0.25).vectors[0]
    np.testing.assert_array_equal(vector, expected)
    whole = embed_clips(model, clips, reporter=SilentReporter()).vectors[0]
    assert np.abs(vector - whole).max() > 1e-4


def test_the_model_is_loaded_once_for_sounds_and_words_of_others(make_encoder, corpus, monkeypatch, model):
    loaded = []
    monkeypatch.setattr(inputs, "load_model", lambda folder, device: loaded.append(device) or model)
    encoder = make_encoder()
    encoder([Part("audio", str(corpus.root / "dog.wav"))])
    encoder([Part("audio", str(corpus.root / "rain.wav")), Part("text", "something new")])
    assert loaded == ["cpu"]


def test_sounds_that_cannot_be_read_are_named(make_encoder, tmp_path):
    with pytest.raises(AudioError, match="^--audio .*none.wav: "):
        make_encoder()([Part("audio", str(tmp_path / "none.wav"))])
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match="^--audio .*text.wav: "):
        make_encoder()([Part("audio", str(tmp_path / "text.wav"))])
