"""The text models of transformers that the tower ``hf`` takes, by their ``model_type``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clapkit.encoders.text._pooling import Pooling


@dataclass(frozen=True, slots=True)
class Family:
    """What has to be known of a model type.

    Attributes:
        module: of transformers that defines it.
        model: name of the class.
        layers: where the model keeps its blocks.
        has_pooler: whether the class can make a vector itself, and takes ``add_pooling_layer``.
        positions: whether a position table starts at the first token (``absolute``) or behind the id of the padding
            (``after_padding``), or there is none (``relative``).
        pooling: where nobody says anything else.
        takes_languages: whether the first token of a sentence says its language.
    """

    module: str
    model: str
    layers: str = "encoder.layer"
    has_pooler: bool = False
    positions: Literal["absolute", "after_padding", "relative"] = "absolute"
    pooling: Pooling = "mean"
    takes_languages: bool = False


FAMILIES = {
    "albert": Family("albert", "AlbertModel", layers="encoder.albert_layer_groups", has_pooler=True),
    "bert": Family("bert", "BertModel", has_pooler=True),
    "clap_text_model": Family("clap", "ClapTextModel", has_pooler=True, positions="after_padding", pooling="pooler"),
    "deberta-v2": Family("deberta_v2", "DebertaV2Model"),
    "distilbert": Family("distilbert", "DistilBertModel", layers="transformer.layer"),
    "electra": Family("electra", "ElectraModel"),
    "gpt2": Family("gpt2", "GPT2Model", layers="h", pooling="last"),
    "m2m_100": Family("m2m_100", "M2M100Encoder", layers="layers", takes_languages=True),
    "modernbert": Family("modernbert", "ModernBertModel", layers="layers"),
    "mpnet": Family("mpnet", "MPNetModel", has_pooler=True, positions="after_padding"),
    "roberta": Family("roberta", "RobertaModel", has_pooler=True, positions="after_padding"),
    "t5": Family("t5", "T5EncoderModel", layers="encoder.block", positions="relative"),
    "xlm-roberta": Family("xlm_roberta", "XLMRobertaModel", has_pooler=True, positions="after_padding"),
}
