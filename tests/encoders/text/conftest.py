"""Tiny random text models of transformers on disk, each with a tokenizer of the library's own class for it."""

import importlib
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from clapkit.encoders.pretrained import quiet_libraries

CORPUS = [
    "A dog barks twice in the rain.",
    "Birds sing while a car passes by!",
    "Ein Hund bellt; Regen fällt.",
    "犬が吠える。",
] * 3
MAX_TOKENS = 24


@dataclass(frozen=True)
class Tiny:
    """How a family's smallest model and tokenizer are made."""

    module: str
    config: str
    model: str
    tokenizer: str
    sizes: dict = field(default_factory=dict)


BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PAD_ONE = BERT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": MAX_TOKENS + 2}
M2M100 = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": MAX_TOKENS,
    "encoder_layerdrop": 0.0,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
CLAP = {
    "text_config": PAD_ONE | {"projection_hidden_size": 8},
    "audio_config": {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "spec_size": 32,
        "num_mel_bins": 8,
        "projection_hidden_size": 8,
    },
    "projection_dim": 8,
}
FOLDERS = {
    "albert": Tiny(
        "albert", "AlbertConfig", "AlbertModel", "AlbertTokenizer", BERT | {"embedding_size": 8, "hidden_dropout_prob": 0.1}
    ),
    "bert": Tiny("bert", "BertConfig", "BertModel", "BertTokenizer", BERT),
    "bert with its head": Tiny("bert", "BertConfig", "BertForMaskedLM", "BertTokenizer", BERT),
    "clap": Tiny("clap", "ClapConfig", "ClapModel", "RobertaTokenizer", CLAP),
    "clap_text_model": Tiny("clap", "ClapTextConfig", "ClapTextModel", "RobertaTokenizer", PAD_ONE),
    "deberta-v2": Tiny(
        "deberta_v2",
        "DebertaV2Config",
        "DebertaV2Model",
        "DebertaV2Tokenizer",
        BERT
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    ),
    "distilbert": Tiny(
        "distilbert",
        "DistilBertConfig",
        "DistilBertModel",
        "DistilBertTokenizer",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "electra": Tiny("electra", "ElectraConfig", "ElectraModel", "ElectraTokenizer", BERT | {"embedding_size": 8}),
    "gpt2": Tiny("gpt2", "GPT2Config", "GPT2Model", "GPT2Tokenizer", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    "m2m_100": Tiny("m2m_100", "M2M100Config", "M2M100Encoder", "NllbTokenizer", M2M100),
    "m2m_100 whole": Tiny("m2m_100", "M2M100Config", "M2M100ForConditionalGeneration", "NllbTokenizer", M2M100),
    "modernbert": Tiny(
        "modernbert",
        "ModernBertConfig",
        "ModernBertModel",
        "PreTrainedTokenizerFast",
        BERT | {"pad_token_id": 1, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 2, "mlp_dropout": 0.1},
    ),
    "mpnet": Tiny("mpnet", "MPNetConfig", "MPNetModel", "MPNetTokenizer", PAD_ONE),
    "roberta": Tiny("roberta", "RobertaConfig", "RobertaModel", "RobertaTokenizer", PAD_ONE),
    "t5": Tiny("t5", "T5Config", "T5EncoderModel", "T5Tokenizer", T5),
    "t5 whole": Tiny("t5", "T5Config", "T5ForConditionalGeneration", "T5Tokenizer", T5),
    "xlm-roberta": Tiny("xlm_roberta", "XLMRobertaConfig", "XLMRobertaModel", "XLMRobertaTokenizer", PAD_ONE),
}
SPECIALS = {
    "AlbertTokenizer": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
    "DebertaV2Tokenizer": ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
    "GPT2Tokenizer": ["<|endoftext|>"],
    "MPNetTokenizer": ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"],
    "NllbTokenizer": ["<s>", "<pad>", "</s>", "<unk>"],
    "PreTrainedTokenizerFast": ["<s>", "<pad>", "</s>", "<unk>"],
    "RobertaTokenizer": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "T5Tokenizer": ["<pad>", "</s>", "<unk>"],
    "XLMRobertaTokenizer": ["<s>", "<pad>", "</s>", "<unk>"],
}
WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _learn(kind, specials):
    """The vocabulary (and merges) of a small tokenizer, as its JSON says them."""
    if kind == "word pieces":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        unknown = next(token for token in specials if "unk" in token.lower())
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=specials, unk_token=unknown, show_progress=False)
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = model["vocab"] if isinstance(model["vocab"], dict) else [tuple(piece) for piece in model["vocab"]]
    return {"vocab": vocabulary} | ({"merges": [tuple(m) for m in model["merges"]]} if "merges" in model else {})


KINDS = {
    **dict.fromkeys(["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"], "word pieces"),
    **dict.fromkeys(["AlbertTokenizer", "DebertaV2Tokenizer", "T5Tokenizer", "XLMRobertaTokenizer"], "unigram"),
    **dict.fromkeys(["GPT2Tokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast"], "bytes"),
    "NllbTokenizer": "pairs",
}


def _make_tokenizer(name):
    """A tokenizer of a class of transformers, learned from the corpus."""
    import transformers

    learned = _learn(KINDS[name], SPECIALS.get(name, WORD_PIECES))
    if name != "PreTrainedTokenizerFast":
        extra = {"extra_ids": 0} if name == "T5Tokenizer" else {}
        return getattr(transformers, name)(**learned, **extra, model_max_length=MAX_TOKENS)
    from tokenizers import processors

    backend = Tokenizer(models.BPE(**learned))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named, model_max_length=MAX_TOKENS)


def _model_class(tiny):
    return getattr(importlib.import_module(f"transformers.models.{tiny.module}.modeling_{tiny.module}"), tiny.model)


def _make_config(tiny, vocab_size):
    config_class = getattr(
        importlib.import_module(f"transformers.models.{tiny.module}.configuration_{tiny.module}"), tiny.config
    )
    if "text_config" in tiny.sizes:
        return config_class(**tiny.sizes | {"text_config": tiny.sizes["text_config"] | {"vocab_size": vocab_size}})
    return config_class(**tiny.sizes | {"vocab_size": vocab_size})


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Folder with config, weights and tokenizer of a name in ``FOLDERS``; made once, so tests must not change it."""
    made: dict[str, Path] = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
            tiny = FOLDERS[name]
            with quiet_libraries(), warnings.catch_warnings():
                # Parts of transformers still use torch.jit, which torch has deprecated.
                warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
                tokenizer = _make_tokenizer(tiny.tokenizer)
                torch.manual_seed(0)
                model = _model_class(tiny)(_make_config(tiny, len(tokenizer)))
                # Weights far from their first values, so that a part that was not loaded shows.
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter += 0.2 * torch.randn_like(parameter)
                model.save_pretrained(made[name])
                tokenizer.save_pretrained(made[name])
        return made[name]

    return folder
