"""What to listen to: queries that went wrong, confident mistakes, and hubs, each clip with its spectrogram and its sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from clapkit.report._html import outside, picture_source
from clapkit.report.numbers import At, count, known
from clapkit.report.pieces import paragraph
from clapkit.report.sound import sound_source

MAX_HUBS = 6
_TEXT_CHARACTERS = 220
_ID_CHARACTERS = 70
_KINDS = {
    "t2a_worst": (
        "Captions whose clip ranks last",
        "With the first clip that was found, and the best wrong ones; no words and no clip are shown twice.",
    ),
    "t2a_confusing": (
        "Captions that a wrong clip misleads most",
        "Those whose best wrong clip leads the right one by most; a clip that is described in the same words is not wrong.",
    ),
    "a2t_worst": ("Clips whose captions rank last", ""),
    "a2t_confusing": ("Clips that a wrong caption misleads most", ""),
}
_LEGEND = (
    "Spectrograms: low tones below, 80 dB from black to white; below them the waveform. All have the same scales; grey is "
    "beyond what was kept."
)
_VERDICTS = {"right": "right", "same words": "same words, another clip", "wrong": "wrong"}
_BORDERS = {"right": "right", "same words": "same", "wrong": "wrong"}


@dataclass(slots=True)
class Media:
    """Pictures and sounds of the clips that are shown; each sound lies in the page once.

    Attributes:
        thumbnails: row of a clip -> PNG; a clip without one cannot be decoded.
        sounds: row of a clip -> MP3; not all clips have one.
        note: what was cut.
        played: rows whose sound is in the page already.
    """

    thumbnails: Mapping[int, bytes]
    sounds: Mapping[int, bytes]
    note: str = ""
    played: set[int] = field(default_factory=set)

    def picture(self, row: int) -> str:
        """The spectrogram of a clip."""
        png = self.thumbnails.get(row)
        if png is None:
            return '<div class="blank">no picture: cannot be decoded</div>'
        return f'<img alt="Spectrogram and waveform" width="256" height="112" src="{picture_source(png)}">'

    def player(self, row: int) -> str:
        """The sound of a clip, or a link to where it stands, or what is missing."""
        if row in self.played:
            return f'<div class="soft nosound"><a href="#sound-{row}">listen above</a></div>'
        mp3 = self.sounds.get(row)
        if mp3 is None:
            return '<div class="soft nosound">sound left out</div>'
        self.played.add(row)
        return f'<audio id="sound-{row}" controls preload="none" src="{sound_source(mp3)}"></audio>'


def queries(evidence: Mapping[str, Any], media: Media, at: At) -> str:
    """Queries of a retrieval; empty without any.

    Args:
        evidence: of one run, as in ``results.json``.
        media: of its clips.
        at: where the evidence stands in ``results.json``.
    """
    parts = []
    for kind, found in evidence.get("queries", {}).items():
        if not found:
            continue
        title, note = _KINDS.get(kind, (kind.replace("_", " "), ""))
        parts.append(f"<h3>{escape(title)}</h3>\n{paragraph(note, kind='soft') if note else ''}")
        parts += [_query(query, evidence["clips"], media, (*at, "queries", kind, place)) for place, query in enumerate(found)]
    return (paragraph(f"{_LEGEND} {media.note}", kind="soft") + "".join(parts)) if parts else ""


def mistakes(evidence: Mapping[str, Any], media: Media, at: At) -> str:
    """Clips that were given a wrong class; empty without any."""
    cards = []
    for place, mistake in enumerate(evidence.get("mistakes", [])):
        lines = [
            f'<div class="what">taken for {_text(mistake["predicted"])}</div>',
            f"<div>is {_text(mistake['target'])}</div>",
        ]
        if "margin" in mistake:
            margin = known(f"{mistake['margin']:.3f}", mistake["margin"], (*at, "mistakes", place, "margin"))
            lines.append(f'<div class="soft">leads by a cosine of {margin}</div>')
        if "rank" in mistake:
            rank = count(mistake["rank"], (*at, "mistakes", place, "rank"))
            lines.append(f'<div class="soft">its class has rank {rank}</div>')
        cards.append(_card(mistake["clip"], evidence["clips"], media, lines, kind="wrong", with_captions=False))
    return _cards(cards)


def hubs(result: Mapping[str, Any], rows: Mapping[str, int], evidence: Mapping[str, Any], media: Media, at: At) -> str:
    """Clips that captions find too often; empty where it is not known or there is none.

    Args:
        result: of the geometry, as in ``results.json``.
        rows: id of a clip -> its row, of those that are shown.
        evidence: of the run.
        media: of its clips.
        at: where the result stands.
    """
    found = result.get("hubness", {}).get("t2a", {})
    expected = found["num_queries"] * found["k"] / found["num_items"] if found else 0.0
    cards = []
    for place, hub in enumerate(found.get("largest", [])[:MAX_HUBS]):
        if hub["id"] not in rows or hub["count"] <= expected:
            continue
        number = known(f"{hub['count']:.0f}", hub["count"], (*at, "hubness", "t2a", "largest", place, "count"))
        lines = [f'<div class="what">in {number} lists</div>']
        cards.append(_card(rows[hub["id"]], evidence["clips"], media, lines))
    if not cards:
        return ""
    where: At = (*at, "hubness", "t2a")
    never = known(
        f"{100 * found['never_retrieved_share']:.1f}", found["never_retrieved_share"], (*where, "never_retrieved_share")
    )
    intro = (
        f"<p>Of {count(found['num_queries'], (*where, 'num_queries'))} captions the lists of the best "
        f"{count(found['k'], (*where, 'k'))} clips were taken. These clips are in more of them than others; {never} % of the "
        f"{count(found['num_items'], (*where, 'num_items'))} clips are in none.</p>\n"
    )
    return intro + _cards(cards)


def _query(query: Mapping[str, Any], clips: Mapping[str, Any], media: Media, at: At) -> str:
    rank = f"rank {count(query['rank'], (*at, 'rank'))} of {count(query['num_items'], (*at, 'num_items'))}"
    if query.get("margin") is not None:
        ahead = known(f"{query['margin']:+.3f}", query["margin"], (*at, "margin"))
        rank += f", best wrong answer {ahead} in cosine"
    if query["caption"] is not None:
        right = [f'<div class="what">the right clip {_score(query, at)}</div>']
        cards = [_card(query["clip"], clips, media, right, kind="right")]
        cards += [_hit(hit, clips, media, (*at, "hits", number)) for number, hit in enumerate(query["hits"])]
        title = f"“{_text(query['caption'])}”"
    else:
        cards = [_card(query["clip"], clips, media, ['<div class="what">the query</div>'], kind="right")]
        cards += [_words(hit, (*at, "hits", number)) for number, hit in enumerate(query["hits"])]
        title = _id(clips[str(query["clip"])]["id"])
    return f'<div class="query"><h4>{title} <span class="soft">{rank}</span></h4>\n{_cards(cards)}</div>\n'


def _score(found: Mapping[str, Any], at: At) -> str:
    score = found["score"]
    return f'<span class="soft">cosine {known(f"{score:.3f}", score, (*at, "score"))}</span>'


def _hit(hit: Mapping[str, Any], clips: Mapping[str, Any], media: Media, at: At) -> str:
    return _card(hit["clip"], clips, media, [_place(hit, at)], kind=_BORDERS[hit["kind"]])


def _words(hit: Mapping[str, Any], at: At) -> str:
    """A caption that a clip found."""
    words = f'<div class="words">“{_text(hit["caption"])}”</div>'
    return f'<article class="{_BORDERS[hit["kind"]]}">{words}{_place(hit, at)}</article>\n'


def _place(hit: Mapping[str, Any], at: At) -> str:
    """Where an item stands in the list, and what it is."""
    return f'<div class="what">found at {count(hit["rank"], (*at, "rank"))}: {_VERDICTS[hit["kind"]]} {_score(hit, at)}</div>'


def _card(
    row: int, clips: Mapping[str, Any], media: Media, lines: Sequence[str], *, kind: str = "", with_captions: bool = True
) -> str:
    clip = clips[str(row)]
    said = clip["captions"][0] if clip["captions"] and with_captions else ""
    parts = [media.picture(row), *lines, media.player(row)]
    if said:
        parts.append(f"<div>{_text(said)}</div>")
    elif clip["labels"] and with_captions:
        parts.append(f"<div>{_text(', '.join(clip['labels']))}</div>")
    parts.append(f'<div class="soft">{_id(clip["id"])}</div>')
    mark = f' class="{kind}"' if kind else ""
    return f"<article{mark}>{''.join(parts)}</article>\n"


def _cards(cards: Sequence[str]) -> str:
    return f'<div class="cards">\n{"".join(cards)}</div>\n' if cards else ""


def _text(text: str) -> str:
    return outside(text, limit=_TEXT_CHARACTERS)


def _id(text: str) -> str:
    return f"<code>{outside(text, limit=_ID_CHARACTERS, keep_end=True)}</code>"
