"""Paths that somebody else wrote, made harmless before anything is written under them.

Names in archives and tables may be absolute, climb out of their folder, hold line breaks or be too long for a file system.
Both sides of an export ask here, so that what one writes the other accepts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from clapkit.data.audio import AUDIO_SUFFIXES

# Linux allows 255 bytes; the rest is for the marks that make a name unique.
_MAX_PART_BYTES = 200
_MAX_PATH_BYTES = 1000
_ODD = re.compile(r"[^\w .,()\[\]+=@&'!#%~-]")


def is_safe_audio_path(path: str) -> bool:
    """Whether a path can be created as it stands below a folder of ours.

    It is relative, goes down only, holds nothing hidden, nothing that cannot be printed and no part longer than 200 bytes,
    and ends like audio.
    """
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or len(path.encode()) > _MAX_PATH_BYTES:  # surrogates cannot be printed
        return False
    if any(not part or part.startswith(".") or len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return False
    stem, dot, suffix = parts[-1].rpartition(".")
    return bool(stem and dot) and f".{suffix.lower()}" in AUDIO_SUFFIXES


def safe_part(text: str) -> str:
    """A text as one part of a path: itself where it is harmless, otherwise what is left of it and a hash of all of it."""
    part = _ODD.sub("_", unicodedata.normalize("NFC", text)).strip(" .")
    if part and part == text and len(part.encode()) <= _MAX_PART_BYTES:
        return part
    # Cut to a hundred bytes, without half a character at the end.
    return f"{part.encode(errors='replace')[:100].decode(errors='ignore').strip(' .')}-{short_hash(text)}".lstrip("-")


def short_hash(text: str) -> str:
    """Twelve hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def printable(text: str) -> str:
    """A text on one line that every file in UTF-8 can hold: as it stands, or with escapes."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
