"""The clauses of English captions and the words of time between them: captions that say another order."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from clapkit.data._caption_words import FINITE, has_verb, is_gerund, words_of
from clapkit.data.recipes._mix_captions import clause

Relation = Literal["then", "before", "after", "preceded", "while"]

_HOW = r"(?:(?:closely|shortly|quickly|immediately|then|soon|eventually) )?"
_FOLLOWED = rf"(?:(?:which|that) )?(?:(?:is|are|was|were|being) )?{_HOW}followed {_HOW}by"
_CONNECTIVES: tuple[tuple[Relation, str], ...] = (
    ("then", rf"{_FOLLOWED}|(?:and )?then|and afterwards|afterwards"),
    ("before", "before"),
    ("after", "after"),
    ("preceded", rf"(?:(?:which|that) )?(?:(?:is|are|was|were) )?{_HOW}preceded {_HOW}by"),
    ("while", "while|whilst|as|and at the same time|and meanwhile|and simultaneously|together with"),
)
_INFIX = re.compile(rf",? (?:{'|'.join(f'(?P<{relation}>{words})' for relation, words in _CONNECTIVES)}),? ", re.IGNORECASE)
FIRST = re.compile(r"(?:at )?first,? (?P<one>.+?),?(?: and)? then (?P<two>.+)", re.IGNORECASE)
LEADING = re.compile(r"(?P<word>after|before|while|whilst|as) (?P<one>[^,]+), (?P<two>.+)", re.IGNORECASE)
AT_ONCE = re.compile(r"(?P<one>.+?),? and (?P<two>.+?) (?:at the same time|at once|together|simultaneously)", re.IGNORECASE)
BACKGROUND = re.compile(r"(?P<one>.+?) with (?P<two>.+?) in the (?:background|distance)", re.IGNORECASE)
_TIME = re.compile(
    r"\b(?:then|followed|afterwards|before|after|preceded|while|whilst|as|time|meanwhile|simultaneously|together|once|background"
    r"|distance)\b",
    re.IGNORECASE,
)
"""A word of one of the forms above: most captions have none."""

# What stands before or behind a connective that connects no two events.
_NO_TIME_BEFORE = {
    "then": frozenset("now since back by until every even only if or louder softer closer faster higher rather more".split()),
    "after": frozenset("one look looks looking named soon over".split()),
    "before": frozenset("than as like never ever the day night".split()),
    "while": frozenset("a for like such same sounds sound sounding as so much soon long just known well acts serves".split()),
}
NO_EVENT = re.compile(
    r"(?:another|the other|each other|that|this|which|one|some time|time goes|time passes"
    r"|(?:a|an|several|few|some) ?(?:short |brief |little |few )?(?:while|moments?|pause|seconds?|minutes?|times?|few|long|bit)"
    r"|if|well|though|usual|being|in|on|at|with)\b",
    re.IGNORECASE,
)
_PRONOUNS = frozenset("he she it they his her its their this that these those which who".split())
NO_CLAUSE = _PRONOUNS | frozenset(
    """in on at of with without for from to by into onto over under near through against around behind during like than if
    amid among along above below when where and or but as while then before after again also another other more once no not both
    each being until""".split()
)
_NO_CONTENT = NO_CLAUSE | {"the", "are", "was", "were"}
_MANNER = frozenset(
    """fast slow faster slower louder softer quieter longer shorter higher lower closer farther further all away off on out up
    down back loud quiet suddenly silent""".split()
)
_OBJECTS = frozenset("it them its his her their the a an up down off out away".split())
_BEHIND_PARTICIPLE = frozenset("off on out up down by again with from into in to over back away against at".split())
_NEARLY = frozenset("shortly right just soon immediately directly moments seconds long briefly".split())
_MOST_SPLITS = 2


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption without its capital and its full stop, and how to give both back."""

    body: str
    has_capital: bool
    stop: str

    @classmethod
    def of(cls, caption: str) -> Sentence:
        """Take a caption apart."""
        text = " ".join(caption.split())
        bare = text.rstrip(".!?")
        return cls(clause(bare), bare[:1].isupper(), text[len(bare) :])

    def with_body(self, body: str) -> str:
        """Another sentence in the same spelling."""
        body = body.strip().rstrip(",")
        return (body[:1].upper() + body[1:] if self.has_capital else body) + self.stop


@dataclass(frozen=True, slots=True)
class Joint:
    """A place where a sentence connects two events: ``left connective right``."""

    left: str
    connective: str
    right: str
    relation: Relation


@functools.lru_cache(maxsize=4096)
def joints(body: str) -> tuple[Joint, ...]:
    """The places, at most two, where words of time connect two events in the middle of a sentence."""
    found: list[Joint] = []
    for match in _INFIX.finditer(body):
        relation = match.lastgroup
        left, right = body[: match.start()], body[match.end() :]
        if left and right and relation is not None and _is_of_time(relation, left, match.group().strip(" ,"), right):
            found.append(Joint(left, match.group(), right, relation))  # type: ignore[arg-type]
        if len(found) == _MOST_SPLITS:
            break
    return tuple(found)


def _is_of_time(relation: str, left: str, connective: str, right: str) -> bool:
    left_words, right_words = words_of(left), words_of(right)
    if not left_words or not right_words:
        return False
    if left_words[-1] in _NO_TIME_BEFORE.get(relation, ()) or left_words[-1] == right_words[0]:
        return False
    if relation == "then":
        return left_words[0] not in ("when", "if", "first", "after", "before", "while", "as")
    if left_words[0] in ("while", "after", "before", "as"):
        return False
    if NO_EVENT.match(right):
        return False
    # "As" says many other things; it is about time where an event follows: somebody, and what is done.
    return connective != "as" or (not is_gerund(right_words[0]) and has_verb(" ".join(right_words[1:])))


@functools.lru_cache(maxsize=4096)
def says_order(caption: str) -> bool:
    """Whether a caption says that one thing comes after another."""
    if not _TIME.search(caption):
        return False
    body = Sentence.of(caption).body
    leading = LEADING.fullmatch(body)
    return (
        any(joint.relation != "while" for joint in joints(body))
        or FIRST.fullmatch(body) is not None
        or (leading is not None and leading["word"].lower() in ("after", "before"))
    )


@functools.lru_cache(maxsize=4096)
def says_together(caption: str) -> bool:
    """Whether a caption says that things go on at the same time."""
    if not _TIME.search(caption):
        return False
    body = Sentence.of(caption).body
    return any(joint.relation == "while" for joint in joints(body)) or any(
        form.fullmatch(body) is not None for form in (AT_ONCE, BACKGROUND)
    )


def reordered(caption: str, *, may_be_ordered: bool = False, may_be_together: bool = False) -> list[str]:
    """Captions that say another order of the same events.

    Clauses that are joined by "while" or "and" are never only exchanged, and "x before y" never becomes "y after x": that
    says the same.

    Args:
        caption: true of the clip.
        may_be_ordered: whether something else says an order of the clip; what goes on together is then not put in one.
        may_be_together: likewise; what comes in order is then not put together.
    """
    if not _TIME.search(caption):
        return []
    sentence = Sentence.of(caption)
    bodies: list[str] = []
    for joint in joints(sentence.body):
        if joint.relation == "while":
            bodies += [] if may_be_ordered else _in_order(joint)
            continue
        bodies += [] if _is_same_event(joint) else _turned(joint)
        bodies += [] if may_be_together else _together(joint)
    bodies += _whole_forms(sentence.body, may_be_ordered, may_be_together)
    return [sentence.with_body(body) for body in dict.fromkeys(bodies)]


def _turned(joint: Joint) -> Iterator[str]:
    """The other order."""
    left, connective, right = joint.left, joint.connective, joint.right
    if joint.relation in ("before", "after"):
        other = {"before": "after", "after": "before"}[joint.relation]
        yield f"{left}{_replaced(connective, joint.relation, other)}{right}"
        if not has_verb(right) or is_gerund(words_of(right)[0]):
            return
    if "followed" in connective.lower():
        yield f"{left}{_replaced(connective, 'followed', 'preceded')}{right}"
    elif "preceded" in connective.lower():
        yield f"{left}{_replaced(connective, 'preceded', 'followed')}{right}"
    exchanged = _exchanged(left, connective, right)
    if exchanged is not None:
        yield exchanged


def _is_same_event(joint: Joint) -> bool:
    """Whether one sound comes twice, "a dog barks, then a dog barks loudly": in the other order that is as true."""
    one, two = _content(joint.left), _content(joint.right)
    return one <= two or two <= one


def _content(text: str) -> set[str]:
    # Five letters hold the stem of most verbs and nouns: "barks" and "barking" are the same.
    return {word[:5].rstrip("s") for word in words_of(text) if len(word) > 2 and word not in _NO_CONTENT}


def _exchanged(left: str, connective: str, right: str) -> str | None:
    """The clauses in each other's place; None where one cannot stand alone."""
    by_verb = "followed" not in connective and "preceded" not in connective
    if by_verb and lacks_subject(right):
        subject = subject_of(left)
        return None if subject is None else f"{subject} {right}{connective}{left[len(subject) + 1 :]}"
    if not can_lead(right) or not can_lead(left) or re.search(r" (?:is|are|was|were)$", left):
        return None
    return f"{right}{connective}{left}"


def can_lead(text: str) -> bool:
    """Whether a clause can be the first of a sentence."""
    words = words_of(text)
    return bool(words) and words[0] not in NO_CLAUSE | _MANNER and not lacks_subject(text)


def _together(joint: Joint) -> Iterator[str]:
    """The two at the same time instead of in order."""
    if words_of(joint.right)[0] in (NO_CLAUSE - _PRONOUNS - {"another"}) | _MANNER:
        return
    if joint.relation in ("before", "after"):
        if words_of(joint.left)[-1] not in _NEARLY:
            yield f"{joint.left} {'while' if has_verb(joint.right) else 'during'} {joint.right}"
    elif re.search(r"followed|preceded", joint.connective):
        yield f"{joint.left} together with {joint.right}"
    else:
        yield f"{joint.left} and at the same time {joint.right}"


def _in_order(joint: Joint) -> Iterator[str]:
    """One after the other instead of at the same time."""
    if words_of(joint.right)[0] in NO_CLAUSE - _PRONOUNS:
        return
    if joint.connective.strip(" ,").lower() in ("while", "whilst", "as"):
        yield f"{joint.left} before {joint.right}"
        yield f"{joint.left} after {joint.right}"
    elif joint.connective.strip(" ,").lower() == "together with":
        yield f"{joint.left} followed by {joint.right}"
        yield f"{joint.left} preceded by {joint.right}"
    else:
        yield f"{joint.left} and then {joint.right}"
        if _exchanged(joint.left, " and then ", joint.right) is not None:
            yield f"{joint.right} and then {joint.left}"


def _whole_forms(body: str, may_be_ordered: bool, may_be_together: bool) -> Iterator[str]:
    """Sentences that are built around their clauses."""
    if (match := FIRST.fullmatch(body)) is not None:
        yield f"first {match['two']}, then {match['one']}"
        if not may_be_together:
            yield f"{match['one']} and at the same time {match['two']}"
    elif (match := LEADING.fullmatch(body)) is not None and not NO_EVENT.match(match["one"]):
        word = match["word"].lower()
        others = {"after": ["before"], "before": ["after"]}.get(word, [] if may_be_ordered else ["before", "after"])
        if word != "as" or has_verb(match["one"]):
            yield from (f"{other} {match['one']}, {match['two']}" for other in others)
    elif may_be_ordered or joints(body):
        return
    elif (match := AT_ONCE.fullmatch(body)) is not None and has_verb(match["one"]) and " and " not in match["two"]:
        if has_verb(match["two"]) and not lacks_subject(match["two"]):
            yield f"{match['one']} and then {match['two']}"
            if can_lead(match["two"]):
                yield f"{match['two']} and then {match['one']}"
    elif (match := BACKGROUND.fullmatch(body)) is not None and has_verb(match["one"]) and has_verb(match["two"]):
        yield f"{match['one']}, followed by {match['two']}"
        yield f"{match['one']}, preceded by {match['two']}"


def _replaced(connective: str, word: str, other: str) -> str:
    return re.sub(word, other, connective, flags=re.IGNORECASE)


def lacks_subject(text: str) -> bool:
    """Whether a clause begins with its verb: "laughs loudly", "turned off"; "laughing" can stand alone."""
    words = words_of(text)
    if len(words) > 1 and words[0].endswith("ly"):
        words = words[1:]
    if not words:
        return True
    first, second = words[0], words[1] if len(words) > 1 else ""
    if first.endswith("ed") and (second in _BEHIND_PARTICIPLE or not second):
        return True
    if first.endswith("s") and second in _OBJECTS:
        return True
    # "Waves crash", "gun fires": a word that is noun and verb is a noun where a verb follows.
    is_noun = second in FINITE or is_gerund(second)
    return first in FINITE and not is_noun


def subject_of(text: str) -> str | None:
    """What stands before the first verb of a clause: "a man" of "a man speaks"; None without such a verb."""
    for match in re.finditer(r"(?<= )[\w'’-]+", text):
        if match.group().lower() in FINITE:
            subject = text[: match.start()].rstrip()
            return None if "," in subject or " and " in subject else subject
    return None
