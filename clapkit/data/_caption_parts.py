"""The statements that an English caption puts together, each true of its clip."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clapkit.data._caption_clauses import (
    AT_ONCE,
    BACKGROUND,
    FIRST,
    LEADING,
    NO_CLAUSE,
    NO_EVENT,
    Sentence,
    can_lead,
    joints,
    lacks_subject,
    subject_of,
)
from clapkit.data._caption_words import has_verb, is_gerund, words_of

_LEAD = re.compile(
    r"(?:(?:we|you|one) (?:can )?hears?(?: that)?|in this (?:clip|recording|audio),?|what happens here is that"
    r"|there (?:is|are)(?: (?:the )?sounds? of)?|the sounds? of) ",
    re.IGNORECASE,
)


def parts(caption: str) -> list[str]:
    """The statements that a caption puts together, each true of its clip; none where it makes only one."""
    sentence = Sentence.of(caption)
    body = _LEAD.sub("", sentence.body, count=1) if _LEAD.match(sentence.body) else sentence.body
    pieces = [piece for piece in _pieces(body) if piece != body and _stands_alone(piece)]
    return [Sentence(piece, sentence.has_capital, sentence.stop).with_body(piece) for piece in dict.fromkeys(pieces)]


def _pieces(body: str) -> list[str]:
    """Clauses of a sentence, those that share a subject with an earlier one with it."""
    for form in (FIRST, LEADING, AT_ONCE, BACKGROUND):
        match = form.fullmatch(body)
        if match is None or NO_EVENT.match(match["one"]):
            continue
        if form is FIRST or form is LEADING or (has_verb(match["one"]) and has_verb(match["two"])):
            return [*_pieces(match["one"]), *_pieces(match["two"])]
    for joint in joints(body)[:1]:
        subject = subject_of(joint.left)
        right = joint.right
        if lacks_subject(right):
            right = f"{subject} {right}" if subject is not None else ""
        return [*_pieces(joint.left), *_pieces(right)]
    return _listed(body)


def _listed(body: str) -> list[str]:
    """Events in a list; pieces without a verb belong to what follows: "a man and a woman talk"."""
    pieces: list[str] = []
    waiting = ""
    subject: str | None = None
    for piece, joint in _list_items(body):
        text = f"{waiting}{piece}"
        if not has_verb(text) or (joint and not has_verb(piece) and not waiting):
            waiting = f"{text}{joint}"
            continue
        waiting = ""
        if not lacks_subject(text):
            subject = subject_of(text)
        elif " " in text or (pieces and _ends_with_verb(pieces[-1], subject)):
            text = f"{subject} {text}" if subject is not None else ""
        else:
            text = ""
        pieces.append(text)
    if waiting:
        return [body]
    return pieces


def _ends_with_verb(piece: str, subject: str | None) -> bool:
    """Whether a word behind "and" goes on with the verb, "water moves and splashes", and not with "amid clicks and thumps"."""
    return subject is not None and NO_CLAUSE.isdisjoint(words_of(piece[len(subject) :])[1:])


def _list_items(body: str) -> Iterator[tuple[str, str]]:
    start = 0
    for match in re.finditer(r", and |, | and ", body):
        yield body[start : match.start()], match.group()
        start = match.end()
    yield body[start:], ""


def _stands_alone(piece: str) -> bool:
    words = words_of(piece)
    return can_lead(piece) and (len(words) > 1 or is_gerund(words[0]))
