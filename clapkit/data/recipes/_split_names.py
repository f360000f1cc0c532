"""What people call the splits of Clotho and of corpora in its manner; mapped once, here.

``dev`` is training data in this family: it is short for development, which the official release calls what others call train.
"""

from __future__ import annotations

SPLIT_FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("development", "development-training", "train", "training", "dev"),
    "val": ("validation", "development-validation", "val", "valid"),
    "test": ("evaluation", "development-testing", "eval", "test", "testing"),
}
"""Split -> names of the folders and tables that hold it, the official one first."""

SPLIT_OF: dict[str, str] = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
"""Name of a folder or table, in lower case -> split."""
