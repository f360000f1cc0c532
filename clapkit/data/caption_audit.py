"""Reads captions for what cannot be meant: wrong language, wrong character set, the same thing twice.

Every test speaks only on strong evidence, because captions are short: a false alarm in a corpus of half a million of them
hides the true ones. What is not found: a language of another script's neighbour (Ukrainian tagged as Russian), languages of
Latin script without a list in ``languages`` unless the script itself is wrong, and errors of spelling and of sense.
"""

from __future__ import annotations

import html
import html.entities
import re
from collections.abc import Iterable, Iterator, Sequence

from clapkit.data.findings import MAX_CHARACTERS, MAX_WORDS, Finding
from clapkit.data.languages import FUNCTION_WORDS, ISO_639_1, KANA, LATIN, OWN_WORDS, SCRIPTS, WITHOUT_BLANKS, WORD
from clapkit.types import Caption, Clip

_MIN_EVIDENCE = 2

_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
_CONTROLS = re.compile("[\x80-\x9f]")
# What is written in captions: accents, typographic marks, Greek, Cyrillic, Han, kana, Hangul, emoji. Other characters come
# out of pairs that are meant, such as É and a closing quotation mark.
_PLAUSIBLE = re.compile(
    "[\u00a0-\u017f\u0391-\u03c9\u0400-\u045f\u2010-\u2044\u20ac\u2122\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7af\uff01-\uff5e"
    "\U0001f300-\U0001faff]+"
)
_LETTERS = re.compile(r"[^\W\d_]")
_LATIN_LETTERS = re.compile(f"[{LATIN}]")
_KANA_LETTERS = re.compile(f"[{KANA}]")
_SCRIPT_LETTERS = {lang: re.compile(f"[{characters}]") for lang, characters in SCRIPTS.items()}
_MIN_LETTERS = 2


def find_caption_problems(clips: Sequence[Clip]) -> list[Finding]:
    """Everything that looks wrong with captions.

    Args:
        clips: of a corpus; where none of them has a caption, none is missed.

    Returns:
        Findings in the order of the clips.
    """
    if not any(clip.captions for clip in clips):
        return []
    # Captions that were made from labels are the same for thousands of clips.
    known: dict[tuple[str, str], list[tuple[str, str, float]]] = {}
    findings = []
    for clip in clips:
        if not clip.captions:
            findings.append(Finding("no_caption", clip.id, "no caption"))
        for number, caption in enumerate(clip.captions, start=1):
            key = caption.text, caption.lang
            if key not in known:
                known[key] = list(_problems(caption))
            for check, detail, severity in known[key]:
                findings.append(Finding(check, f"{clip.id} caption {number}", detail, severity))
        if len(clip.captions) > 1:
            findings += _repeated(clip)
    return findings


def num_words(caption: Caption) -> int:
    """Length in words; in characters where the language is written without blanks."""
    if _base(caption.lang) in WITHOUT_BLANKS:
        return sum(not character.isspace() for character in caption.text)
    return len(caption.text.split())


def _problems(caption: Caption) -> Iterator[tuple[str, str, float]]:
    """Check, detail and severity of everything that is wrong with one caption."""
    # Most captions have fewer characters than they may have words.
    words = num_words(caption) if len(caption.text) > min(MAX_WORDS, MAX_CHARACTERS) else 0
    limit, unit = (MAX_CHARACTERS, "characters") if _base(caption.lang) in WITHOUT_BLANKS else (MAX_WORDS, "words")
    if words > limit:
        yield "long_caption", f"{words} {unit}", words / limit
    broken = _mojibake(caption.text)
    if broken:
        yield "mojibake", broken, 1.0
    else:
        # The letters of broken text say nothing about its language.
        wrong, severity = _wrong_language(caption)
        if wrong:
            yield "wrong_language", wrong, severity
    entity = _entity(caption.text)
    if entity:
        yield "html_entity", f"{entity!r} stands for {html.unescape(entity)!r}", 1.0


def _base(lang: str) -> str:
    """The language of a tag: ``pt`` of ``pt-BR``."""
    return lang.partition("-")[0]


def _wrong_language(caption: Caption) -> tuple[str, float]:
    lang = _base(caption.lang)
    if lang not in ISO_639_1:
        return f"tag {caption.lang!r}, no ISO 639-1 tag such as 'en'", 1.0
    text = caption.text
    if lang in SCRIPTS:
        num_letters = len(_LETTERS.findall(text))
        if num_letters >= _MIN_LETTERS and not _SCRIPT_LETTERS[lang].search(text):
            return f"tag {caption.lang!r}, no letter of its script", num_letters
        num_kana = len(_KANA_LETTERS.findall(text)) if lang == "zh" and not text.isascii() else 0
        return (f"tag {caption.lang!r}, Japanese letters", num_kana) if num_kana >= _MIN_LETTERS else ("", 0.0)
    if lang not in FUNCTION_WORDS:
        return "", 0.0
    if not text.isascii():
        num_letters = len(_LETTERS.findall(text))
        num_foreign = num_letters - len(_LATIN_LETTERS.findall(text))
        if num_foreign >= _MIN_LETTERS and num_foreign > num_letters / 2:
            return f"tag {caption.lang!r}, letters of another script", num_foreign
    return _other_words(text, lang)


def _other_words(text: str, lang: str) -> tuple[str, float]:
    """Whether the small words are of another language, none of them of this one alone."""
    lower = text.lower()
    if not OWN_WORDS[lang].isdisjoint(lower.split()):
        return "", 0.0  # nearly always
    words = set(WORD.findall(lower))
    own = words & FUNCTION_WORDS[lang]
    worst: tuple[str, float] = ("", 0.0)
    for other, theirs in FUNCTION_WORDS.items():
        evidence = (words & theirs) - own
        # Words of both languages speak for neither.
        if len(evidence) >= max(_MIN_EVIDENCE, worst[1] + 1) and own <= theirs:
            worst = f"tag {lang!r}, words of {other!r}: {', '.join(sorted(evidence)[:3])}", len(evidence)
    return worst


def _mojibake(text: str) -> str:
    """What of a text was decoded with the wrong character set; empty if nothing shows it."""
    if text.isascii():
        return ""
    if "\ufffd" in text:
        return "the replacement character U+FFFD"
    control = _CONTROLS.search(text)
    if control:
        return f"the control character U+{ord(control[0]):04X}"
    for run in _NON_ASCII.findall(text):
        meant = _as_utf8(run)
        if meant:
            return f"{run!r} stands for {meant!r}"
    return ""


def _as_utf8(run: str) -> str:
    """What non-ASCII characters meant before UTF-8 was read as Western European; empty if they were not."""
    try:
        meant = run.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return ""
    return meant if _PLAUSIBLE.fullmatch(meant) else ""


def _entity(text: str) -> str:
    if "&" not in text:
        return ""
    # Not html.unescape alone, which also reads the first letters of &nothing; as one.
    return next((found for found in _ENTITY.findall(text) if found[1] == "#" or found[1:] in html.entities.html5), "")


def _repeated(clip: Clip) -> Iterable[Finding]:
    """Captions of a clip that say the same as an earlier one in the same language."""
    seen: dict[tuple[str, str], int] = {}
    for number, caption in enumerate(clip.captions, start=1):
        key = (caption.lang, " ".join(caption.text.casefold().split()).rstrip(".!。！ "))
        first = seen.setdefault(key, number)
        if first != number:
            yield Finding("duplicate_caption", f"{clip.id} caption {number}", f"the same as caption {first}")
