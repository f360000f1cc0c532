"""Class names of corpora as words: the same rule for all, with a table of each corpus for the awkward ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

VERSION = "1"
"""Of the rule and the tables; results name it, because a class name is part of a prompt."""


Names = Literal["words", "blanks", "raw"]
"""How a recipe spells classes: readable words (rule and table), blanks for underscores (rule alone), or as the corpus does."""


def class_name(raw: str, overrides: Mapping[str, str] | None = None) -> str:
    """A class as words: underscores become blanks, runs of blanks one; commas, hyphens, brackets and case stay.

    Args:
        raw: as the corpus spells it.
        overrides: spellings of the corpus -> words, for those that the rule does not make readable.
    """
    if overrides and raw in overrides:
        return overrides[raw]
    return " ".join(raw.replace("_", " ").split())


def spell(raw: str, names: Names, overrides: Mapping[str, str]) -> str:
    """A class in the spelling that the user chose.

    Published numbers rest on different spellings: some keep the underscores, some turn them into blanks, and both reach the
    tokenizer.

    Args:
        raw: as the corpus spells it.
        names: the spelling.
        overrides: the table of the corpus, for ``words``.
    """
    return raw if names == "raw" else class_name(raw, overrides if names == "words" else None)
