import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from clapkit.encoders.text._hf_tokenizer import HfTokenizer, read_settings, read_tokenizer
from clapkit.encoders.text.hf import build
from clapkit.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[EOS]", "a", "dog", "barks", "twice"]


def words_tokenizer(*, specials=True):
    """One id per word, in the order of ``WORDS``; [CLS] in front and [SEP] behind, if wanted."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return tokenizer


def made(tokenizer=None, *, settings=None, **numbers):
    tokenizer = tokenizer or words_tokenizer()
    numbers = {"positions": 8, "vocab_size": len(WORDS), "pad_id": 0, "eos_id": None} | numbers
    return HfTokenizer(tokenizer.to_str(), settings=settings or {}, **numbers)


def encode(tokenizer, *captions):
    ids, real = tokenizer.encode(list(captions), None, CPU)
    return ids.tolist(), real.tolist()


def test_captions_are_padded_to_the_longest_with_the_models_padding() -> None:
    ids, real = encode(made(pad_id=4), "a dog", "a")
    assert ids == [[1, 5, 6, 2], [1, 5, 2, 4]]
    assert real == [[True] * 4, [True, True, True, False]]


def test_the_padding_token_of_the_settings_goes_before_the_models() -> None:
    assert encode(made(settings={"pad_token": "[EOS]"}, pad_id=0), "a dog", "a")[0][1] == [1, 5, 2, 4]
    assert encode(made(settings={"pad_token": {"content": "[EOS]", "lstrip": False}}), "a dog", "a")[0][1] == [1, 5, 2, 4]
    assert encode(made(settings={"pad_token": "[NONE]"}, pad_id=None), "a dog", "a")[0][1] == [1, 5, 2, 0]


def test_padding_and_truncation_in_the_file_do_not_leak() -> None:
    tokenizer = words_tokenizer()
    tokenizer.enable_padding(length=7, pad_id=3)
    tokenizer.enable_truncation(3)
    assert encode(made(tokenizer), "a dog barks twice") == ([[1, 5, 6, 7, 8, 2]], [[True] * 6])


def test_long_captions_keep_their_closing_token_and_are_counted() -> None:
    tokenizer = made(max_tokens=4)
    assert encode(tokenizer, "a dog barks twice", "a dog", "dog " * 50)[0] == [[1, 5, 6, 2], [1, 5, 6, 2], [1, 6, 6, 2]]
    assert tokenizer.num_cut == 2
    encode(tokenizer, "a dog barks")
    assert tokenizer.num_cut == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_counted_before_anything_is_cut(side) -> None:
    tokenizer = made(max_tokens=4, settings={"truncation_side": side})
    # Two special tokens, and one for each word.
    assert tokenizer.count(["", "a", "a dog", "a dog barks", "dog " * 50]) == [2, 3, 4, 5, 52]
    ended = made(words_tokenizer(specials=False), settings={"append_eos": True, "eos_token": "[EOS]"}, max_tokens=3)
    assert ended.count(["", "a dog", "dog " * 50]) == [1, 3, 51]
    assert tokenizer.num_cut == ended.num_cut == 0


def test_a_caption_of_just_the_length_is_whole() -> None:
    tokenizer = made(max_tokens=6)
    assert encode(tokenizer, "a dog barks twice")[0] == [[1, 5, 6, 7, 8, 2]]
    assert tokenizer.num_cut == 0


def test_a_tokenizer_that_cuts_in_front_does_so() -> None:
    assert encode(made(max_tokens=4, settings={"truncation_side": "left"}), "a dog barks twice")[0] == [[1, 7, 8, 2]]


@pytest.mark.parametrize(
    ("settings", "positions", "wanted", "expected"),
    [
        ({}, 8, None, 8),
        ({"model_max_length": 6}, 8, None, 6),
        ({"model_max_length": 10}, 8, None, 8),
        ({"model_max_length": 10**30}, 8, None, 8),
        ({"model_max_length": 1e30}, None, None, 512),
        ({"model_max_length": 6}, None, None, 6),
        ({"model_max_length": 6}, 8, 5, 5),
    ],
)
def test_the_length_is_the_smallest_that_is_stated(settings, positions, wanted, expected) -> None:
    assert made(settings=settings, positions=positions, max_tokens=wanted).max_tokens == expected


@pytest.mark.parametrize("wanted", [2, 0, -1, 9])
def test_a_length_out_of_range_is_refused(wanted) -> None:
    with pytest.raises(
        ConfigError, match=f"^option max_tokens={wanted}: expected 3 to 8, as the text encoder adds 2 tokens and takes 8$"
    ):
        made(max_tokens=wanted)


def test_a_length_without_room_for_words_is_refused() -> None:
    with pytest.raises(CheckpointError, match="captions may have 2 tokens, of which 2 are added; raise model_max_length"):
        made(settings={"model_max_length": 2})


def test_append_eos_puts_the_end_token_behind_and_keeps_it_when_cutting() -> None:
    tokenizer = made(words_tokenizer(specials=False), settings={"append_eos": True, "eos_token": "[EOS]"}, max_tokens=3)
    assert encode(tokenizer, "a dog", "a dog barks", "", "a")[0] == [[5, 6, 4], [5, 6, 4], [4, 0, 0], [5, 4, 0]]
    assert tokenizer.num_cut == 1


def test_append_eos_falls_back_to_the_end_token_of_the_model_and_no_further() -> None:
    assert encode(made(words_tokenizer(specials=False), settings={"append_eos": True}, eos_id=4), "a")[0] == [[5, 4]]
    with pytest.raises(CheckpointError, match="has no end token to append; name it as eos_token in the tokenizer_config"):
        made(settings={"append_eos": True})


def test_a_caption_of_no_tokens_is_one_end_token() -> None:
    plain = words_tokenizer(specials=False)
    assert encode(made(plain, eos_id=4), "", "a dog") == ([[4, 0], [5, 6]], [[True, False], [True, True]])
    assert encode(made(plain, pad_id=3), "")[0] == [[3]]


def test_languages_need_tokens_of_languages() -> None:
    with pytest.raises(CheckpointError, match="has no token of a language such as eng_Latn or __en__"):
        made(with_languages=True, eos_id=4)


def test_a_vocabulary_with_ids_behind_the_table_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has ids up to 8, but the model's table has 8 rows; it is another model's"):
        made(vocab_size=8)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 1}'])
def test_a_damaged_tokenizer_is_named(text) -> None:
    with pytest.raises(CheckpointError, match="^text tokenizer: cannot be read"):
        HfTokenizer(text, settings={}, positions=8, vocab_size=9, pad_id=0, eos_id=None)


def test_settings_keep_what_is_used_alone() -> None:
    config = {"pad_token": {"content": "<pad>"}, "eos_token": None, "model_max_length": 10**30, "tokenizer_class": "X"}
    assert read_settings(config) == {"pad_token": "<pad>"}
    assert read_settings({"model_max_length": 77, "append_eos": True}) == {"model_max_length": 77, "append_eos": True}


# Folders ----------------------------------------------------------------------------------------------------------------


def test_older_files_are_converted_once(text_folder, tmp_path) -> None:
    for name in ("bert", "gpt2"):
        folder = shutil.copytree(text_folder(name), tmp_path / name)
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        if name == "bert":
            (folder / "vocab.txt").write_text("\n".join(sorted(model["vocab"], key=model["vocab"].get)))
        else:
            (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]))
        (folder / "tokenizer.json").unlink()
        new, old = build(weights=str(text_folder(name))), build(weights=str(folder))
        captions = ["A dog barks twice, then silence!", "Ein Hund bellt; Regen fällt.", "犬", ""]
        assert old.tokenizer.encode(captions, None, CPU)[0].tolist() == new.tokenizer.encode(captions, None, CPU)[0].tolist()


def test_older_files_that_cannot_be_converted_are_named(text_folder, tmp_path) -> None:
    folder = shutil.copytree(text_folder("t5"), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"\x00\x01 no model of sentencepiece")
    with pytest.raises(CheckpointError, match="has no tokenizer.json, and its older files cannot be converted") as caught:
        read_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_settings_has_none(text_folder, tmp_path) -> None:
    folder = shutil.copytree(text_folder("bert"), tmp_path / "m")
    (folder / "tokenizer_config.json").unlink()
    text, settings = read_tokenizer(folder)
    assert Tokenizer.from_str(text).get_vocab_size() > 0
    assert settings == {}


def test_gpt2_reads_the_end_token_where_it_is_appended(text_folder) -> None:
    plain = build(weights=str(text_folder("gpt2")))
    ended = build(weights=str(text_folder("gpt2")), tokenizer_config={"append_eos": True})
    (ids,), _ = ended.tokenizer.encode(["A dog"], None, CPU)
    (bare,), _ = plain.tokenizer.encode(["A dog"], None, CPU)
    end = Tokenizer.from_str(plain.rebuild_options["tokenizer"]).token_to_id("<|endoftext|>")
    assert ids.tolist() == [*bare.tolist(), end]
    # Pooling takes the last token, so the two readings are those of the bare sentence and of the token behind it.
    states = plain.model(input_ids=ids[None]).last_hidden_state[0]
    torch.testing.assert_close(ended(["A dog"])[0], states[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain(["A dog"])[0], states[-2], rtol=1e-5, atol=1e-5)
    assert ended.rebuild_options["tokenizer_config"]["append_eos"] is True
