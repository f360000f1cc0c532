"""Text towers of transformers against the library itself: its tokenizer, its forward, its weights."""

import importlib
import json
import shutil

import pytest
import torch

from clapkit import registry
from clapkit.encoders.adapters import add_adapters
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.pretrained import quiet_libraries
from clapkit.encoders.text.hf import FAMILIES, build
from clapkit.errors import CheckpointError, ConfigError, ShapeError, UnknownNameError

CAPTIONS = ["A dog barks twice.", "Rain", "Ein Hund bellt; Regen fällt, während Vögel singen!", "犬が吠える", "bark " * 60]
LANGUAGES = ["en", "fr", "de", "ja", "en"]
NLLB = {"en": "eng_Latn", "fr": "fra_Latn", "de": "deu_Latn", "ja": "jpn_Jpan"}
# Folders of larger models, of which the tower takes the part that reads text.
LARGER = {"clap": "clap_text_model", "m2m_100 whole": "m2m_100", "t5 whole": "t5", "bert with its head": "bert"}
every_family = pytest.mark.parametrize("name", sorted(FAMILIES))
every_folder = pytest.mark.parametrize("name", sorted([*FAMILIES, *LARGER]))
POOLINGS = [
    (name, pooling)
    for name, family in sorted(FAMILIES.items())
    for pooling in ["mean", "cls", "last", *(["pooler"] if family.has_pooler else [])]
    # The first token of a model that reads from left to right has seen nothing, so that its last layers rest on the others.
    if (name, pooling) != ("gpt2", "cls")
]


def load_library(folder, name):
    """The library's own tokenizer and model of a folder."""
    from transformers import AutoTokenizer

    family = FAMILIES[LARGER.get(name, name)]
    module = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    owner = {"clap": "ClapModel", "m2m_100 whole": "M2M100Model"}.get(name, family.model)
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        whole = getattr(module, owner).from_pretrained(folder, dtype=torch.float32).eval()
    return tokenizer, {"clap": lambda: whole.text_model, "m2m_100 whole": lambda: whole.encoder}.get(name, lambda: whole)()


def library_ids(tokenizer, caption, language):
    if language is not None:
        tokenizer.src_lang = NLLB[language]
    return tokenizer(caption, truncation=True)["input_ids"]


def library_embedding(tokenizer, model, caption, language, pooling):
    ids = torch.tensor([library_ids(tokenizer, caption, language)])
    with torch.inference_mode():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    states = output.last_hidden_state[0]
    if pooling == "pooler":
        return output.pooler_output[0]
    return {"mean": sum(states) / len(states), "cls": states[0], "last": states[-1]}[pooling]


def languages_of(tower):
    return (LANGUAGES,) if tower.takes_languages else ()


@every_folder
def test_ids_and_embeddings_are_those_of_the_library(name, text_folder):
    tower = build(weights=str(text_folder(name)))
    tokenizer, model = load_library(text_folder(name), name)
    tags = LANGUAGES if tower.takes_languages else [None] * len(CAPTIONS)
    ids, real = tower.tokenizer.encode(CAPTIONS, *(languages_of(tower) or (None,)), torch.device("cpu"))
    with torch.inference_mode():
        embeddings = tower(CAPTIONS, *languages_of(tower))
    assert embeddings.shape == (5, tower.embedding_dim) == (5, 16)
    for row, (caption, tag) in enumerate(zip(CAPTIONS, tags, strict=True)):
        assert ids[row][real[row]].tolist() == library_ids(tokenizer, caption, tag)
        expected = library_embedding(tokenizer, model, caption, tag, tower.pooling)
        torch.testing.assert_close(embeddings[row], expected, rtol=1e-5, atol=1e-5)
    with quiet_libraries():
        lengths = [len(tokenizer(caption)["input_ids"]) for caption in CAPTIONS]
    num_long = sum(length > tower.max_tokens for length in lengths)
    assert tower.count_tokens(CAPTIONS) == lengths
    # They were encoded twice above.
    assert num_long >= 1
    assert tower.num_cut == 2 * num_long


@every_family
def test_an_embedding_does_not_depend_on_the_batch(name, text_folder):
    tower = build(weights=str(text_folder(name)))
    captions, tags = [*CAPTIONS, ""], ([*LANGUAGES, "de"] if tower.takes_languages else None)
    with torch.inference_mode():
        together = tower(captions, tags)
        alone = torch.cat([tower([caption], tags and [tags[row]]) for row, caption in enumerate(captions)])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
def test_every_parameter_gets_a_gradient(name, pooling, text_folder):
    tower = build(weights=str(text_folder(name)), pooling=pooling).train()
    features = tower(CAPTIONS)
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    unreached = [key for key, parameter in tower.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert unreached == []


@every_folder
def test_a_tower_is_rebuilt_without_any_file(name, text_folder, tmp_path):
    folder = shutil.copytree(text_folder(name), tmp_path / "model")
    first = build(weights=str(folder))
    shutil.rmtree(folder)
    options = json.loads(json.dumps(first.rebuild_options))
    assert str(tmp_path) not in json.dumps(options)
    second = registry.build("text encoder", "hf", {key: value for key, value in options.items() if value is not None})
    second.load_state_dict(first.state_dict(), strict=True)
    tags = languages_of(first)
    with torch.inference_mode():
        assert torch.equal(first(CAPTIONS, *tags), second.eval()(CAPTIONS, *tags))
    assert second.rebuild_options == first.rebuild_options
    assert not first.training
    assert all(parameter.dtype == torch.float32 for parameter in second.parameters())


@every_family
def test_layers_are_the_blocks_in_the_order_in_which_they_run(name, text_folder):
    tower, ran = build(weights=str(text_folder(name))), []
    for place, layer in enumerate(tower.layers):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    tower(["A dog"])
    # ALBERT has one block, which runs twice.
    assert ran == ([0, 0] if name == "albert" else [0, 1])


@every_family
def test_dropout_works_in_training_alone(name, text_folder):
    tower = build(weights=str(text_folder(name)))
    calm = [tower(CAPTIONS).detach() for _ in range(2)]
    assert torch.equal(*calm)
    tower.train()
    torch.manual_seed(0)
    wild = [tower(CAPTIONS).detach() for _ in range(2)]
    assert not torch.equal(*wild)


@pytest.mark.parametrize(
    ("name", "pooling"), [("bert", "mean"), ("clap", "mean"), ("clap_text_model", "cls"), ("albert", "last")]
)
def test_an_explicit_pooling_is_that_of_the_library(name, pooling, text_folder):
    tower = build(weights=str(text_folder(name)), pooling=pooling)
    tokenizer, model = load_library(text_folder(name), name)
    expected = library_embedding(tokenizer, model, CAPTIONS[0], None, pooling)
    torch.testing.assert_close(tower(CAPTIONS)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    # Positions of RoBERTa and its relatives start behind the id of the padding: 26 rows - 1 - 1.
    [
        ("roberta", 24),
        ("xlm-roberta", 24),
        ("mpnet", 24),
        ("clap", 24),
        ("m2m_100", 24),
        ("gpt2", 1024),
        ("bert", 512),
        ("t5", 512),
    ],
)
def test_without_a_stated_length_captions_fill_the_positions_of_the_model(name, expected, text_folder, tmp_path):
    tower = build(weights=edited(text_folder(name), tmp_path / "m", file="tokenizer_config.json", model_max_length=None))
    assert tower.max_tokens == expected
    with torch.inference_mode():
        assert torch.isfinite(tower(["bark " * 600])).all()
    assert tower.num_cut == 1


def test_gpt2_keeps_nothing_for_a_next_token(text_folder):
    tower = build(weights=str(text_folder("gpt2")))
    ids = torch.tensor([[1, 2, 3]])
    assert tower.model(input_ids=ids, attention_mask=torch.ones_like(ids)).past_key_values is None
    assert tower.rebuild_options["config"]["use_cache"] is False


def test_a_configuration_of_a_whole_clap_gives_its_text_half(text_folder):
    config = json.loads((text_folder("clap") / "config.json").read_text())
    tokenizer = (text_folder("clap") / "tokenizer.json").read_text()
    tower = build(config=config, tokenizer=tokenizer)
    assert tower.rebuild_options["config"]["model_type"] == "clap_text_model"
    assert {key: value.shape for key, value in tower.state_dict().items()} == {
        key: value.shape for key, value in build(weights=str(text_folder("clap"))).state_dict().items()
    }
    with pytest.raises(CheckpointError, match="the config is none of ClapTextModel"):
        build(config={"model_type": "clap"}, tokenizer=tokenizer)


def test_a_tokenizer_file_is_read_without_the_library(text_folder, monkeypatch):
    import transformers

    def refuse(*_, **__):
        raise AssertionError("AutoTokenizer was asked")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    assert build(weights=str(text_folder("bert")))(["A dog"]).shape == (1, 16)


def test_embeddings_under_autocast_are_near_those_in_full_precision(text_folder):
    tower = build(weights=str(text_folder("m2m_100")))
    full = tower(CAPTIONS, LANGUAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(tower(CAPTIONS, LANGUAGES).float(), full, rtol=0.1, atol=0.1)


def test_what_a_folder_has_too_much_is_noted(text_folder):
    (note,) = build(weights=str(text_folder("bert with its head"))).notes
    assert "tensors are not used by BertModel: cls.predictions" in note
    assert build(weights=str(text_folder("roberta")), pooling="pooler").notes == []
    assert "2 tensors are not used by RobertaModel: pooler.dense" in build(weights=str(text_folder("roberta"))).notes[0]


def test_a_missing_pooler_is_an_error_where_it_is_read(text_folder):
    with pytest.raises(CheckpointError, match="2 tensors are missing for BertModel, first pooler.dense.bias"):
        build(weights=str(text_folder("bert with its head")), pooling="pooler")


def edited(folder, target, *, file="config.json", **changes):
    """A copy of a folder with other values in a JSON file; None takes one out."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text()) if (target / file).is_file() else {}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    (target / file).write_text(json.dumps(content))
    return str(target)


def test_a_whole_model_is_never_read_as_an_encoder_alone(text_folder, tmp_path):
    # The configuration says encoder, the weights are of the whole model: all of its tensors would be missing.
    weights = edited(text_folder("m2m_100 whole"), tmp_path / "m", architectures=["M2M100Encoder"])
    with pytest.raises(CheckpointError, match="tensors are missing for M2M100Encoder"):
        build(weights=weights)
    weights = edited(text_folder("m2m_100"), tmp_path / "n", architectures=["M2M100ForConditionalGeneration"])
    with pytest.raises(CheckpointError, match="tensors are missing for M2M100Model"):
        build(weights=weights)


def test_layer_drop_is_turned_off_with_a_note(text_folder, tmp_path):
    tower = build(
        weights=edited(text_folder("m2m_100"), tmp_path / "m", encoder_layerdrop=0.9, dropout=0.0, attention_dropout=0.0)
    )
    assert tower.notes == ["text encoder hf: LayerDrop of 0.9 is turned off"]
    assert tower.rebuild_options["config"]["encoder_layerdrop"] == 0
    calm = tower(CAPTIONS)
    assert torch.equal(tower.train()(CAPTIONS), calm)


# Languages --------------------------------------------------------------------------------------------------------------


def test_the_language_of_a_sentence_changes_its_embedding(text_folder):
    tower = build(weights=str(text_folder("m2m_100")))
    assert tower.takes_languages
    english, german, tagged, region = tower(["Hand"] * 4, ["en", "de", "eng_Latn", "en-US"])
    assert not torch.allclose(english, german)
    torch.testing.assert_close(tagged, english)
    torch.testing.assert_close(region, english)
    torch.testing.assert_close(tower(["Hand"])[0], english)


def test_a_stored_post_processor_of_another_language_does_not_matter(text_folder, tmp_path):
    # Folders of NLLB were saved with the language behind the sentence, as an older version put it.
    from tokenizers import Tokenizer, processors

    folder = shutil.copytree(text_folder("m2m_100"), tmp_path / "m")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    specials = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "deu_Latn")]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s> deu_Latn", special_tokens=specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    expected = build(weights=str(text_folder("m2m_100")))(CAPTIONS, LANGUAGES)
    torch.testing.assert_close(build(weights=str(folder))(CAPTIONS, LANGUAGES), expected)


def test_an_unknown_language_is_named_with_the_known_ones(text_folder):
    with pytest.raises(
        ConfigError, match="^language 'xx': the text encoder has no such language; expected one of af, ak, am.*zu"
    ):
        build(weights=str(text_folder("m2m_100")))(["Hand"], ["xx"])


def test_every_caption_needs_a_language(text_folder):
    with pytest.raises(ShapeError, match="^text tower: got 1 languages for 2 captions; give one for each$"):
        build(weights=str(text_folder("m2m_100")))(["a", "b"], ["en"])


# Folders of sentence-transformers ---------------------------------------------------------------------------------------


def sentence_folder(folder, target, *, pooling, kinds=("Transformer", "Pooling", "Normalize"), length=None):
    shutil.copytree(folder, target)
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": "1_Pooling" if kind == "Pooling" else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16} | pooling))
    if length:
        (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    return str(target)


def test_auto_takes_the_pooling_and_the_length_that_sentence_transformers_names(text_folder, tmp_path):
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    tower = build(weights=sentence_folder(text_folder("bert"), tmp_path / "m", pooling=flags, length=9))
    assert tower.pooling == "cls"
    assert tower.max_tokens == 9
    assert any("unit norm" in note for note in tower.notes)
    tokenizer, model = load_library(text_folder("bert"), "bert")
    torch.testing.assert_close(
        tower(CAPTIONS)[1], library_embedding(tokenizer, model, "Rain", None, "cls"), rtol=1e-5, atol=1e-5
    )


def test_an_explicit_pooling_goes_before_what_sentence_transformers_names(text_folder, tmp_path):
    weights = sentence_folder(
        text_folder("bert"), tmp_path / "m", pooling={"pooling_mode": "max"}, kinds=("Transformer", "Dense")
    )
    assert build(weights=weights, pooling="mean").pooling == "mean"
    with pytest.raises(CheckpointError, match="has a module Dense behind the tower, which is not applied"):
        build(weights=weights)


# Whole models -----------------------------------------------------------------------------------------------------------


def test_a_saved_dual_encoder_holds_the_tower(text_folder, tmp_path):
    folder = shutil.copytree(text_folder("m2m_100"), tmp_path / "sonar")
    model = DualEncoder("tiny", "hf", embedding_dim=8, text_options={"weights": str(folder)}).eval()
    model.save(tmp_path / "saved")
    shutil.rmtree(folder)
    loaded = DualEncoder.load(tmp_path / "saved")
    with torch.inference_mode():
        assert torch.equal(loaded.encode_text(CAPTIONS, LANGUAGES), model.encode_text(CAPTIONS, LANGUAGES))
    assert loaded.config == model.config
    assert "weights" not in loaded.config["text"]["options"]


# Wrong inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "wav2vec2"},
            "model type 'wav2vec2' is no text encoder that clapkit knows; .*audio models belong to --audio-weights$",
        ),
        ({"model_type": None}, "model type None is no text encoder"),
        ({"auto_map": {"AutoModel": "modeling.Bert"}}, r"the model needs code of its author \(auto_map\), which is not run"),
        ({"hidden_size": 32}, "tensors have another shape for BertModel, first .*embeddings.LayerNorm.bias"),
    ],
)
def test_a_wrong_configuration_is_named(changes, message, text_folder, tmp_path):
    weights = edited(text_folder("bert"), tmp_path / "m", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        build(weights=weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", "has no config.json, so its architecture is not known"),
        ("model.safetensors", "cannot be loaded as BertModel"),
        ("tokenizer.json", "has no tokenizer: expected tokenizer.json, or vocab.txt, or vocab.json and merges.txt"),
    ],
)
def test_a_missing_file_is_named(broken, message, text_folder, tmp_path):
    folder = shutil.copytree(text_folder("bert"), tmp_path / "m")
    (folder / broken).unlink()
    with pytest.raises(CheckpointError, match=message) as caught:
        build(weights=str(folder))
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_named(text_folder, tmp_path):
    folder = shutil.copytree(text_folder("bert"), tmp_path / "m")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded as BertModel"):
        build(weights=str(folder))


def test_a_file_is_no_folder(text_folder):
    with pytest.raises(CheckpointError, match="is a file, expected a folder with config.json"):
        build(weights=str(text_folder("bert") / "model.safetensors"))


def test_another_tokenizer_is_refused(text_folder):
    larger = (text_folder("roberta") / "tokenizer.json").read_text()
    with pytest.raises(
        CheckpointError, match="text tokenizer: has ids up to 2.., but the model's table has .* rows; it is another"
    ):
        build(weights=str(text_folder("xlm-roberta")), tokenizer=larger)


def options(folder):
    tower = build(weights=str(folder))
    return {key: tower.rebuild_options[key] for key in ("config", "tokenizer", "tokenizer_config")}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": "x"}, ConfigError, "text encoder hf: got both of weights and config"),
        ({"config": None}, ConfigError, "text encoder hf: got neither of weights and config; name a folder"),
        ({"tokenizer": None}, ConfigError, "got a config without a tokenizer"),
        ({"tokenizer": "{}"}, CheckpointError, "text tokenizer: cannot be read"),
        ({"config": "bert.json"}, ConfigError, "option config: got text, expected a JSON object"),
        ({"tokenizer_config": "{}"}, ConfigError, "option tokenizer_config: got text, expected a JSON object"),
        ({"config": {"model_type": "bert", "hidden_size": "wide"}}, CheckpointError, "the config is none of BertModel"),
        ({"config": {"model_type": "hubert"}}, CheckpointError, "text encoder hf: model type 'hubert' is no text encoder"),
        (
            {"max_tokens": 2},
            ConfigError,
            "option max_tokens=2: expected 3 to 24, as the text encoder adds 2 tokens and takes 24",
        ),
        ({"max_tokens": 25}, ConfigError, "option max_tokens=25: expected 3 to 24"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, error, message, text_folder):
    with pytest.raises(error, match=message) as caught:
        build(**options(text_folder("bert")) | changes)
    assert "\n" not in str(caught.value)


def test_a_pooler_that_is_not_there_is_refused(text_folder):
    with pytest.raises(ConfigError, match="option pooling=pooler: GPT2Model has no pooler; expected mean, cls or last"):
        build(weights=str(text_folder("gpt2")), pooling="pooler")


def test_an_unknown_option_is_refused():
    with pytest.raises(UnknownNameError, match="'pool'"):
        registry.build("text encoder", "hf", {"pool": "mean"})


def test_adapters_on_gpt2_are_refused_with_the_reason(text_folder):
    encoder = DualEncoder("tiny", "hf", embedding_dim=8, text_options={"weights": str(text_folder("gpt2"))})
    with pytest.raises(ConfigError, match="--lora text: .* GPT-2, whose matrices are Conv1D"):
        add_adapters(encoder, "text", rank=2)
