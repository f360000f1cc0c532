"""What gives a language away in one sentence: its script, or its small words.

The lists are short on purpose. A word is evidence only where no other list of the two in question has it, so that the
words that languages share do no harm.
"""

from __future__ import annotations

import re

ISO_639_1 = frozenset(
    """aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
    es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki
    kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr
    nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th
    ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu""".split()
)
"""All two-letter tags."""

LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a"
_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_CYRILLIC, _ARABIC, _DEVANAGARI = "\u0400-\u052f", "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc", "\u0900-\u097f"
_ETHIOPIC, _BENGALI, _HEBREW = "\u1200-\u137f", "\u0980-\u09ff", "\u0590-\u05ff\ufb1d-\ufb4f"

SCRIPTS: dict[str, str] = {
    "zh": _HAN,
    "ja": _HAN + KANA,
    "ko": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "he": _HEBREW,
    "yi": _HEBREW,
    "th": "\u0e00-\u0e7f",
    "lo": "\u0e80-\u0eff",
    "km": "\u1780-\u17ff",
    "my": "\u1000-\u109f",
    "ka": "\u10a0-\u10ff",
    "hy": "\u0530-\u058f",
    "ta": "\u0b80-\u0bff",
    "te": "\u0c00-\u0c7f",
    "kn": "\u0c80-\u0cff",
    "ml": "\u0d00-\u0d7f",
    "gu": "\u0a80-\u0aff",
    "si": "\u0d80-\u0dff",
    "or": "\u0b00-\u0b7f",
} | {
    tag: script
    for script, tags in (
        (_CYRILLIC, "ru uk be bg mk"),
        (_ARABIC, "ar fa ur ps ug"),
        (_DEVANAGARI, "hi mr ne sa"),
        (_ETHIOPIC, "am ti"),
        (_BENGALI, "bn as"),
    )
    for tag in tags.split()
}
"""Language -> characters of its script, as inside a regular expression; languages that are written in one script only."""

WITHOUT_BLANKS = frozenset({"zh", "ja", "th", "lo", "km", "my"})

FUNCTION_WORDS: dict[str, frozenset[str]] = {
    tag: frozenset(words.split())
    for tag, words in {
        "en": """a an the and or of in on at to from by with without into over under near behind through then while as is are
            was were be being it its this that these there followed several some someone something people man woman men
            women child birds bird dog dogs sound sounds noise background another very loud loudly speaks speaking talking
            rain water car engine music playing plays for during after before out up down off back away""",
        "de": """der die das den dem des ein eine einen einem einer eines und oder ist sind war wird werden mit ohne auf aus
            bei von vom zu zum zur im ins nach während dann nicht sich sein ihre hund bellt vogel vögel mann frau spricht
            geräusch wasser auto motor musik jemand hintergrund laut leise über unter durch für einige mehrere man wie""",
        "fr": """le la les un une des du et ou est sont dans sur sous avec sans pour par puis pendant tandis que qui au aux en
            ce cette se son sa ses il elle de il chien aboie oiseau oiseaux homme femme parle bruit eau voiture moteur
            musique quelqu plusieurs très fort arrière loin près""",
        "es": """el la los las un una unos unas y o es son está están en con sin por para del al de que mientras luego después
            se su sus lo muy más perro ladra pájaro pájaros hombre mujer habla hablando ruido sonido agua coche motor música
            alguien fondo varios fuerte""",
        "it": """il lo la i gli le un uno una e o è sono in con senza per da di del della dei delle nel nella sul sulla al alla
            che mentre poi si suo sua cane abbaia uccello uccelli uomo donna parla rumore suono acqua macchina motore musica
            qualcuno sottofondo molto forte""",
        "nl": """de het een en of is zijn wordt worden in op met zonder van voor door naar bij uit aan dat die terwijl dan niet
            er te hond blaft vogel vogels man vrouw praat geluid water auto motor muziek iemand achtergrond luid meerdere
            wat""",
        "pt": """o a os as um uma uns umas e ou é são está estão em no na nos nas com sem por para do da dos das ao de que
            enquanto depois se seu sua muito cão cachorro late pássaro pássaros homem mulher fala falando ruído som água
            carro motor música alguém fundo vários""",
        "ca": """el la els les un una uns unes i o és són està estan en amb sense per del dels al als de que mentre després es
            seu seva molt gos borda ocell ocells home dona parla soroll aigua cotxe motor música algú fons diversos""",
    }.items()
}
"""Language -> words that nearly every sentence about a sound has one of."""

OWN_WORDS: dict[str, frozenset[str]] = {
    tag: words.difference(*(theirs for other, theirs in FUNCTION_WORDS.items() if other != tag))
    for tag, words in FUNCTION_WORDS.items()
}
"""Those of the small words that no other of these languages has."""

WORD = re.compile(rf"[{LATIN}]+")
