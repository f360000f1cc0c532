"""Words of English captions of sound: opposites, what makes sounds, and how verbs are inflected."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

_PAIRS = """
loud quiet, loudly quietly, louder quieter, noisily quietly, noisy quiet, high low, higher lower, high-pitched low-pitched,
shrill deep, fast slow, quick slow, rapid slow, quickly slowly, rapidly slowly, faster slower, swiftly slowly,
large small, big small, huge tiny, giant tiny, heavily lightly, forcefully gently,
strong weak, strongly weakly, male female, man woman, men women, boy girl, boys girls, male's female's, man's woman's,
males females, gentleman lady, continuous intermittent, continuously intermittently, constant occasional,
constantly occasionally, steady irregular, steadily irregularly, increasing decreasing, increases decreases,
accelerates decelerates, accelerating decelerating, starts stops, starting stopping, opens closes, opening closing,
indoors outdoors, inside outside, indoor outdoor, happy sad, happily sadly, muffled clear, long short, wooden metallic,
wet dry, empty crowded, gentle violent, approaching receding
"""
_ONE_WAY = {
    "distant": "nearby",
    "faraway": "nearby",
    "nearby": "far away",
    "soft": "loud",
    "softly": "loudly",
    "softer": "louder",
    "faint": "loud",
    "faintly": "loudly",
    "slow": "fast",
    "slowly": "quickly",
    "small": "large",
    "quiet": "loud",
    "quietly": "loudly",
    "little": "big",
    "gently": "forcefully",
    "tiny": "huge",
}
_PHRASES = {
    "a nearby": "a distant",
    "the nearby": "the distant",
    "in the distance": "close by",
    "far away": "close by",
    "close by": "far away",
    "light rain": "heavy rain",
    "light wind": "strong wind",
    "heavy rain": "light rain",
    "heavy wind": "light wind",
    "young man": "old man",
    "young woman": "old woman",
    "old man": "young man",
    "old woman": "young woman",
}
_NO_OPPOSITE = (
    r"deep(?:ly)? breath\w*|a little(?! (?:girl|boy|dog|bird|child))|little bit|long before|long after|no longer|before long"
    r"|as long|high school|inside of|outside of|close to|starts? to|slow motion|short while"
)


def _opposites() -> dict[str, str]:
    pairs = [pair.split() for pair in _PAIRS.replace("\n", " ").split(",")]
    both_ways = {one: other for one, other in pairs} | {other: one for one, other in reversed(pairs)}
    return both_ways | _ONE_WAY | _PHRASES


OPPOSITES = _opposites()
"""Attribute -> its opposite, lower case; phrases too."""

_PHRASE = re.compile(rf"\b(?:(?P<not>{_NO_OPPOSITE})|{'|'.join(_PHRASES)})\b")


def attributes(text: str) -> list[str]:
    """The attributes with an opposite that a text names, lower case, each once."""
    text = text.lower()
    phrases = [match.group() for match in _PHRASE.finditer(text) if match["not"] is None]
    # Of "old man" the man can be exchanged too.
    bare = _PHRASE.sub(lambda match: " " if match["not"] or "nearby" in match.group() else match.group().split()[-1], text)
    return sorted({*phrases, *(word for word in WORD.findall(bare) if word in OPPOSITES)})


EVENTS = frozenset("starts stops starting stopping opens closes opening closing".split())
"""Attributes of which a sound has both where both are named: what starts and stops does not start twice."""

GENDERS = ("male", "female", "man", "woman", "boy", "girl", "gentleman", "lady")
"""Words whose pronouns change with them."""

PRONOUNS = {
    "he": "she",
    "his": "her",
    "him": "her",
    "himself": "herself",
    "she": "he",
    "her": "his",
    "hers": "his",
    "herself": "himself",
}

_SOURCES = {
    "person": (
        "man woman boy girl child kid baby person male female adult infant toddler lady guy crowd audience choir someone",
        "men women people boys girls children kids babies males females adults",
        "speech voice voices speaks speak speaking talk talks talking laughs laughing laughter cries crying sings singing",
    ),
    "dog": ("dog puppy", "dogs puppies", "bark barks barking growls growling howl howls"),
    "cat": ("cat kitten", "cats kittens", "meow meows meowing purrs purring mew mews"),
    "bird": (
        "bird rooster duck goose pigeon crow owl seagull chicken cockerel turkey",
        "birds ducks geese pigeons crows owls seagulls chickens",
        "chirp chirps chirping tweet tweets tweeting caw cawing quack quacks quacking crows crowing cooing",
    ),
    "insect": ("bee insect cricket mosquito", "bees insects crickets cicadas bugs", "buzz buzzes buzzing"),
    "frog": ("frog toad", "frogs toads", "croak croaks croaking"),
    "livestock": (
        "horse cow goat pig donkey lamb",
        "horses cows goats pigs",
        "sheep animal animals bleats neighs moo mooing hooves",
    ),
    "vehicle": (
        "car truck bus motorcycle motorbike vehicle engine motor tractor",
        "cars trucks buses motorcycles vehicles engines",
        "traffic racing revving revs idling idles horn honk honks honking siren sirens road driving drives drive",
    ),
    "train": ("train subway tram locomotive", "trains", "railroad railway tracks"),
    "aircraft": (
        "helicopter airplane plane jet aeroplane",
        "helicopters airplanes planes jets",
        "aircraft flying flies propeller",
    ),
    "boat": ("boat motorboat ship", "boats ships", ""),
    "bell": ("bell gong", "bells chimes", "ring rings ringing toll tolls tolling church"),
    "phone": ("phone telephone", "phones telephones", "ring rings ringing dial"),
    "clock": ("clock", "clocks", "watch tick ticks ticking ticktock tick-tock"),
    "alarm": ("alarm buzzer", "alarms", "beep beeps beeping bleeps siren sirens"),
    "door": ("door gate", "doors", "knock knocks knocking"),
    "typing": ("keyboard typewriter", "keyboards", "type types typing keys"),
    "instrument": (
        "guitar piano violin drum flute trumpet",
        "guitars drums violins",
        "music song melody instrument instruments",
    ),
    "tool": ("drill hammer chainsaw", "drills hammers tools", "tool saw sawing drilling hammering machine machines"),
    "gun": ("gun rifle cannon", "guns gunshots", "gunfire gunshot shots shooting explosion explosions fireworks"),
    "toilet": ("toilet faucet", "toilets", "flush flushes flushing sink water"),
    "footsteps": ("", "footsteps", "walk walks walking steps walked"),
}
_MASS = {
    "rain": ("rain", "raining rains rainfall rainstorm storm"),
    "thunder": ("thunder", "thunderstorm storm lightning"),
    "wind": ("wind", "winds windy breeze blowing blows"),
    "water": ("water", "waves wave stream river ocean splash splashing splashes waterfall rain fountain pouring pours"),
    "music": ("music", "song songs melody piano guitar instrument instruments sings singing"),
    "fire": ("fire", "fireworks flames burning campfire"),
    "traffic": ("traffic", "car cars vehicle vehicles road truck trucks highway"),
    "applause": ("applause", "clap claps clapping applauding crowd audience cheering"),
    "static": ("static", "radio noise"),
}


_KINDS = {
    "living": "person dog cat bird insect frog livestock footsteps",
    "vehicles": "vehicle train aircraft boat",
    "weather": "rain thunder wind water fire",
    "made": "music traffic applause static",
}


def _nouns() -> tuple[dict[str, tuple[str, str]], dict[str, frozenset[str]]]:
    nouns: dict[str, tuple[str, str]] = {}
    kinds = {group: kind for kind, members in _KINDS.items() for group in members.split()}
    groups: dict[str, set[str]] = {}
    listed = [(group, (*lists[:2], ""), lists[2]) for group, lists in _SOURCES.items()]
    listed += [(group, ("", "", lists[0]), lists[1]) for group, lists in _MASS.items()]
    for group, numbers, signs in listed:
        for number, words in zip(("one", "many", "mass"), numbers, strict=True):
            for word in words.split():
                nouns[word] = (number, kinds.get(group, "objects"))
                groups.setdefault(word, set()).add(group)
        for word in signs.split():
            groups.setdefault(word, set()).add(group)
    return nouns, {word: frozenset(found) for word, found in groups.items()}


NOUNS, GROUPS = _nouns()
"""What makes sounds -> its number and kind, which others must have to stand in its place; word -> the groups it speaks of."""

_VERBS = """
applaud approach baa babble bang bark beat beep begin bellow blare blast bleat blow boil bounce break breathe bubble burp
burst buzz call caw chat chatter cheer chew chime chirp chop chug clack clang clank clap clatter clear click clink
clip-clop close cluck come communicate continue converse coo cough crack crackle crash creak crinkle croak croon crow
crumple crunch cry cut decelerate ding drip drive drone drop echo explode fade fall fire flap flow flush flutter fly
gallop gargle gasp giggle give go grind groan growl gurgle hammer hiss hit honk hoot hover howl hum idle jingle kick knock
land laugh leave make meow mew moan moo move mumble murmur neigh occur oink open operate pant pass play pop pour purr
quack race rain ramble rattle recede rev ring rip roar roll rub rumble run rush rustle saw scrape scratch scream screech
sew shake shoot shout shuffle shut sing sizzle skid slam slow smash snap sneeze sniff snore sob sound speak speed spin
splash spray sputter squawk squeak squeal stamp start steam step stir stop strike strum sweep swoosh talk tap tear thud
thump tick toll toot trickle trot turn tweet type vibrate wail walk warble wash whimper whine whir whirr whisper whistle
whoosh woof work yawn yell yelp yodel zip
""".split()
_DOUBLED = frozenset(
    """
    begin chat chop chug clap cut drip drop flap hit hum pop rev rip rub run shut skid slam snap sob spin step stop
    strum tap trot zip
    """.split()
)


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


def _gerund(verb: str) -> str:
    if verb in _DOUBLED:
        return f"{verb}{verb[-1]}ing"
    return f"{verb[:-1]}ing" if verb.endswith("e") and not verb.endswith("ee") else f"{verb}ing"


THIRD_PERSON = frozenset(map(_third_person, _VERBS)) | {"is", "was", "has", "does", "coos", "moos"}
"""Verbs as they stand behind one: "barks"."""

PLURAL_VERBS = frozenset(_VERBS) - {"rain", "saw", "sound", "drone", "play"} | {"are", "were", "have", "do"}
"""Verbs as they stand behind many: "bark"."""

GERUNDS = frozenset(map(_gerund, _VERBS))
"""Verbs with -ing."""


FINITE = THIRD_PERSON | PLURAL_VERBS


def is_gerund(word: str) -> bool:
    """Whether a word, lower case, is a verb with -ing; nearly all of them that captions have."""
    return word in GERUNDS or (len(word) > 5 and word.endswith("ing") and word not in _NO_GERUNDS)


_NO_GERUNDS = frozenset("something nothing anything everything evening morning during string spring ceiling building".split())


def has_verb(text: str) -> bool:
    """Whether a verb is among the words of a text."""
    words = words_of(text)
    return any(word in FINITE or is_gerund(word) for word in words)


def words_of(text: str) -> list[str]:
    """The words of a text, lower case."""
    return WORD.findall(text.lower())


def folded(text: str) -> str:
    """A text as it is compared with others: without capitals, full stop and repeated blanks."""
    return " ".join(text.casefold().split()).rstrip(".!?。！？ ")
