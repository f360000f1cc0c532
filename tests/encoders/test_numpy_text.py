import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from clapkit import registry
from clapkit.encoders import _numpy_layers, numpy_text
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.heads import HEADS
from clapkit.encoders.loading import load
from clapkit.encoders.numpy_text import open_text_encoder
from clapkit.errors import CheckpointError, NumericalError

CAPTIONS = ["a dog is barking", "rain falls on a roof", "ein Hund bellt im Regen", "un chien aboie", "собака лает", "犬の声"]
WORDS = " ".join(CAPTIONS).split() + [
    "Ünïcödé",
    "🐕",
    "xqzv",
    "ＤＯＧ",
    "...",
    "\t",
    "n\u0303",
    "\u200b",
    "x" * 40,
    "שלום",
    "0",
]
TOWERS = ["small", "tiny", "light"]


def shake(model: nn.Module, seed: int) -> None:
    """Make every parameter random, so that none is a zero or a one that hides an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.8 * parameter + (0.3 if parameter.dim() == 1 else 0.02) * noise)


def make(tower: str, head: str = "mlp", *, width: int = 24, shaken: bool = True, **options: Any) -> DualEncoder:
    torch.manual_seed(0)
    model = DualEncoder("tiny", tower, embedding_dim=width, text_options={"captions": CAPTIONS, **options}, text_head=head)
    if shaken:
        shake(model, seed=1)
    return model.eval()


def by_torch(model: DualEncoder, texts: list[str]) -> Any:
    with torch.inference_mode():
        return model.encode_text(texts).numpy()


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.choice([0, 1, 2, 3, 5, 8, 40, 90]))) for _ in range(count)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a model of a tower and a head, each once."""
    folder = tmp_path_factory.mktemp("models")

    def save(tower: str = "tiny", head: str = "mlp") -> Path:
        path = folder / f"{tower}-{head}"
        if not path.is_dir():
            make(tower, head).save(path)
        return path

    return save


@pytest.fixture
def copied(saved: Callable[..., Path], tmp_path: Path) -> Path:
    """A model that a test may damage."""
    return Path(shutil.copytree(saved(), tmp_path / "model"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)


def opened(folder: Path) -> numpy_text.NumpyTextEncoder:
    encoder = open_text_encoder(folder)
    assert encoder is not None
    return encoder


@pytest.mark.parametrize("head", ["mlp", "clap"])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("shaken", [False, True], ids=["fresh", "shaken"])
def test_vectors_are_those_of_torch(tmp_path: Path, tower: str, head: str, shaken: bool) -> None:
    model = make(tower, head, shaken=shaken)
    model.save(tmp_path)
    encoder = opened(tmp_path)
    texts = ["", " ", "dog", *CAPTIONS, *random_texts(12, seed=2)]
    expected = by_torch(model, texts)
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 24)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
    assert np.abs(expected - expected.mean(axis=0)).max() > 1e-2  # vectors that are all alike would show nothing


@pytest.mark.parametrize("tower", TOWERS)
def test_captions_are_cut_and_counted_as_the_tower_does(saved: Callable[..., Path], tower: str) -> None:
    model, encoder = DualEncoder.load(saved(tower)), opened(saved(tower))
    most = encoder.max_tokens
    # A lone letter that no caption has is one token, and one more for the blank before it.
    texts = ["z" * (most - 1), "z" * most, "z" * (most + 1), "dog"]
    by_torch(model, texts)
    encoder.encode(texts)
    assert encoder.captions_cut == model.captions_cut == (2, most)
    alike = encoder.encode(["z" * most, "z" * (most + 50)])
    np.testing.assert_array_equal(*alike)
    assert encoder.num_cut == 4


@pytest.mark.parametrize("tower", TOWERS)
def test_a_vector_does_not_depend_on_its_neighbours(saved: Callable[..., Path], tower: str) -> None:
    encoder = opened(saved(tower))
    texts = random_texts(60, seed=3)
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(encoder.encode(texts[::-1])[::-1], together)


def test_many_sentences_of_one_length_are_embedded_in_several_batches(saved: Callable[..., Path]) -> None:
    encoder = opened(saved())
    letters = [chr(ord("a") + number % 26) + chr(ord("a") + number // 26) for number in range(600)]
    np.testing.assert_allclose(encoder.encode(letters), by_torch(DualEncoder.load(saved()), letters), rtol=0, atol=1e-6)


def test_no_sentence_gives_no_vector(saved: Callable[..., Path]) -> None:
    assert opened(saved()).encode([]).shape == (0, 24)


def test_a_vector_of_nothing_known_is_still_unit_norm(saved: Callable[..., Path]) -> None:
    np.testing.assert_allclose(np.linalg.norm(opened(saved()).encode(["", "🐕", "\x00"]), axis=1), 1, atol=1e-6)


def test_weights_kept_in_half_precision_are_read_as_torch_reads_them(copied: Path) -> None:
    change_weights(
        copied, lambda weights: weights.update({k: v.half() for k, v in weights.items() if v.dtype == torch.float32})
    )
    expected = by_torch(DualEncoder.load(copied), CAPTIONS)
    np.testing.assert_allclose(opened(copied).encode(CAPTIONS), expected, rtol=0, atol=1e-6)


def test_numbers_that_numpy_has_not_are_left_to_torch(copied: Path) -> None:
    change_weights(copied, lambda weights: weights.update({"text_tower.positions": weights["text_tower.positions"].bfloat16()}))
    assert DualEncoder.load(copied) is not None
    assert open_text_encoder(copied) is None


def test_a_model_that_names_no_head_has_the_first_one(copied: Path) -> None:
    expected = opened(copied).encode(CAPTIONS)
    change_config(copied, lambda config: config["text"].pop("head"))
    np.testing.assert_array_equal(opened(copied).encode(CAPTIONS), expected)


def test_the_audio_half_is_not_read(copied: Path) -> None:
    expected = opened(copied).encode(CAPTIONS)
    change_weights(copied, lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("audio")])
    np.testing.assert_array_equal(opened(copied).encode(CAPTIONS), expected)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_shapes_are_those_of_the_tower(tower: str) -> None:
    model = registry.build("text encoder", tower, {"captions": CAPTIONS})
    theirs = {f"text_tower.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = numpy_text.TOWERS[tower]
    assert ours.shapes(model.subwords.size) == theirs
    assert ours.embedding_dim == model.embedding_dim
    assert ours.max_tokens == model.max_tokens
    assert ours.vocab_size == registry.defaults("text encoder", tower)["vocab_size"]


def test_every_built_in_tower_and_head_needs_no_torch() -> None:
    assert set(numpy_text.TOWERS) == set(registry.names("text encoder")) - {"hf"}
    assert set(numpy_text.HEADS) == set(HEADS)


def test_torch_and_pandas_are_not_loaded(saved: Callable[..., Path]) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from clapkit.encoders.numpy_text import open_text_encoder\n"
        "assert open_text_encoder(Path(sys.argv[1])).encode(['dog barking']).shape == (1, 24)\n"
        "print(sorted({'torch', 'pandas', 'transformers', 'scipy', 'pyarrow', 'soundfile'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(saved("small"))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_other_towers_and_other_folders_are_left_to_torch(copied: Path, tmp_path: Path) -> None:
    assert open_text_encoder(tmp_path / "nowhere") is None
    assert open_text_encoder(tmp_path) is None
    (tmp_path / "model.pt").write_bytes(b"weights")
    assert open_text_encoder(tmp_path / "model.pt") is None
    change_config(copied, lambda config: config["text"].update(encoder="hf"))
    assert open_text_encoder(copied) is None
    for content in ('{"model_type": "clap"}', "[]", "{", "[" * 100_000, "\xff"):
        (copied / "config.json").write_text(content, encoding="latin-1")
        assert open_text_encoder(copied) is None


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"model\.safetensors: cannot be read as safetensors",
    ),
    "truncated": (truncate, r"model\.safetensors: cannot be read as safetensors .* restore it or train again"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read as safetensors"),
    "no safetensors": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be read as safetensors"),
    "a tensor is missing": (
        lambda folder: change_weights(folder, lambda weights: weights.pop("text_tower.norm.bias")),
        r"1 tensors do not fit the configuration, first 'text_tower\.norm\.bias'; weights and config\.json must come from",
    ),
    "a tensor too many": (
        lambda folder: change_weights(folder, lambda weights: weights.update({"text_head.extra": torch.zeros(2)})),
        r"1 tensors do not fit the configuration, first 'text_head\.extra'",
    ),
    "a wrong shape": (
        lambda folder: change_weights(folder, lambda weights: weights.update({"text_tower.positions": torch.zeros(31, 16)})),
        r"1 tensors do not fit the configuration, first 'text_tower\.positions'",
    ),
    "a damaged tokenizer": (
        lambda folder: change_config(folder, lambda config: config["text"]["options"].update(tokenizer="{}")),
        "text tokenizer: cannot be read .* train the model again",
    ),
    "another format": (
        lambda folder: change_config(folder, lambda config: config.update(clapkit_model=2)),
        r"config\.json: model format 2, this clapkit reads 1; use the version that wrote it",
    ),
    "an unknown head": (
        lambda folder: change_config(folder, lambda config: config["text"].update(head="msp")),
        r"config\.json: cannot be used \(UnknownNameError: unknown projection head 'msp': .*name a finished train run",
    ),
    "no width": (
        lambda folder: change_config(folder, lambda config: config.pop("embedding_dim")),
        r"config\.json: cannot be used \(KeyError: 'embedding_dim'\); name a finished train run or a model folder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_as_the_loader_with_torch_tells_it(copied: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    break_it(copied)
    with pytest.raises(CheckpointError, match=message) as ours:
        open_text_encoder(copied)
    with pytest.raises(CheckpointError, match=message) as theirs:
        load(copied)
    assert str(ours.value) == str(theirs.value)
    assert "\n" not in str(ours.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["text"]["options"].pop("tokenizer"),
        lambda config: config["text"]["options"].update(vocab_size="many"),
        lambda config: config["text"].update(options=None),
        lambda config: config["text"].update(encoder=["small"]),
        lambda config: config.update(text=None),
        lambda config: config.pop("text"),
    ],
)
def test_a_configuration_that_lacks_something_is_refused(copied: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    change_config(copied, change)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be used .*; name a finished train run or a model folder"):
        open_text_encoder(copied)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_weights_that_diverged_are_an_error(copied: Path, value: float) -> None:
    names = ("text_head.norm.weight", "text_head.norm.bias")
    change_weights(copied, lambda weights: [weights[name].fill_(value) for name in names])
    with pytest.raises(
        NumericalError, match="2 of 2 embeddings are zero or not finite, the first of 'a'; the model is damaged"
    ):
        opened(copied).encode(["a", "b"])


def test_weights_that_diverged_inside_the_tower_are_an_error(copied: Path) -> None:
    change_weights(copied, lambda weights: weights["text_tower.layers.0.feed_forward.1.bias"].fill_(float("nan")))
    with pytest.raises(NumericalError, match="1 of 1 embeddings"):
        opened(copied).encode(["a"])


def test_words_are_known_that_consist_of_more_than_letters(tmp_path: Path) -> None:
    make("small", vocab_size=4000).save(tmp_path)
    encoder = opened(tmp_path)
    # Of "a dog xqzv": " a" is one piece of 2 bytes. Of "xqzv": " ", "x", "q", "z", "v" are 5 pieces of 5 bytes.
    assert all(encoder.knows(text) for text in ("dog", "a dog xqzv", "Rain", "собака", "犬の声"))
    assert not any(encoder.knows(text) for text in ("", "xqzv", "кот", "?!", "鳥"))


def test_a_tokenizer_that_was_held_to_few_subwords_is_taken_to_know_all_words(tmp_path: Path) -> None:
    make("small", vocab_size="259").save(tmp_path)  # as -O text.vocab_size=259 is kept
    assert opened(tmp_path).knows("xqzv")


def test_the_error_function_is_right_everywhere() -> None:
    x = np.linspace(-7, 7, 200_001, dtype=np.float32)
    expected = torch.erf(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(_numpy_layers.erf(x), expected, rtol=0, atol=2e-7)
    assert _numpy_layers.erf(np.float32([np.inf, -np.inf, 0.0])).tolist() == [1.0, -1.0, 0.0]
    with np.errstate(invalid="ignore"):
        assert np.isnan(_numpy_layers.erf(np.float32([np.nan]))).all()


def test_the_logistic_function_does_not_overflow() -> None:
    values = _numpy_layers.sigmoid(np.float32([-1e4, -1.0, 0.0, 1.0, 1e4]))
    # 1 / (1 + e) = 0.26894
    np.testing.assert_allclose(values, [0, 0.26894, 0.5, 0.73106, 1], atol=1e-5)
