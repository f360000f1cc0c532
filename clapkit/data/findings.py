"""The checks of ``prepare``: their names, what each means, and what it does to a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clapkit.data.inspection import CLIPPED_SHARE, SILENT_RMS

TOO_SHORT_S = 0.1
# Corpora of clips cut to one length say so; where lengths vary, none is odd.
COMMON_SHARE = 0.8
# A thousandth of a second: more than rounding, less than a frame of any coder.
MAX_LENGTH_DIFFERENCE_S = 0.001
# -34 dB below full scale. Field recorders and phones stay below a tenth of it.
MAX_DC_OFFSET = 0.02
# -60 dB: what must be heard on another channel before a silent one is called dead.
HEARD_RMS = 1e-3
USUAL_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000, 176400, 192000)
# Text encoders of the field read 77 tokens, some 60 English words or 100 Chinese characters.
MAX_WORDS = 60
MAX_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it means, whether what it finds is left out, and from where on it speaks."""

    about: str
    effect: Literal["rejects", "flags"]
    threshold: str
    needs_decoding: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a usable clip that may be wrong.

    Attributes:
        check: name of the check, a key of ``CHECKS``.
        item: id of the clip, or ``<id> caption <number from 1>``.
        detail: what was found, one short phrase.
        severity: the larger, the worse; to be compared inside one check.
    """

    check: str
    item: str
    detail: str
    severity: float = 0.0


CHECKS: dict[str, Check] = {
    "unreadable": Check("The file cannot be opened or decoded, or its header is absurd.", "rejects", "any"),
    "empty": Check("The file has no bytes or no samples.", "rejects", "0 bytes or 0 frames"),
    "truncated": Check("The file ends before its header says so.", "rejects", "any byte; 1,152 frames for MPEG"),
    "not_finite": Check("Samples are NaN or infinite.", "rejects", "any", True),
    "empty_caption": Check("A caption has no text; its clip stays.", "rejects", "no characters but blanks"),
    "too_short": Check("The clip is too short to hear what it is.", "flags", f"< {TOO_SHORT_S} s"),
    "odd_duration": Check(
        "The clip is not as long as nearly all others are.",
        "flags",
        f"where {COMMON_SHARE:.0%} of the clips have one length: {MAX_LENGTH_DIFFERENCE_S:g} s more or less",
    ),
    "silent": Check("Nothing is heard, any DC offset left aside.", "flags", f"RMS < {SILENT_RMS:g} (-80 dB)", True),
    "constant": Check("All samples are equal, but not 0: only a DC offset.", "flags", "all", True),
    "clipped": Check("Samples lie at full scale.", "flags", f"> {CLIPPED_SHARE:g} of the samples", True),
    "dc_offset": Check("The mean of a channel is far from 0.", "flags", f"> {MAX_DC_OFFSET:g} of full scale", True),
    "dead_channel": Check(
        "One channel is silent while another is heard.",
        "flags",
        f"RMS < {SILENT_RMS:g} beside one of at least {HEARD_RMS:g} (-60 dB)",
        True,
    ),
    "wrong_header": Check("The suffix or the header says something else than the file holds.", "flags", "any"),
    "odd_sample_rate": Check("The sample rate is none of the usual ones.", "flags", "any other rate"),
    "duplicate": Check("The file has the bytes, and the clip the span, of an earlier one.", "flags", "all bytes", True),
    "near_duplicate": Check(
        "The clip sounds the same as an earlier one.", "flags", "8 landmarks on 7 frequencies at one offset", True
    ),
    "no_caption": Check("The clip has no caption, though others have.", "flags", "0 captions"),
    "duplicate_caption": Check("A caption stands twice on one clip.", "flags", "same text, case and final stop left aside"),
    "long_caption": Check(
        "The caption goes on where text encoders stop reading.",
        "flags",
        f"> {MAX_WORDS} words, or characters > {MAX_CHARACTERS} in scripts without blanks",
    ),
    "wrong_language": Check(
        "The language tag is unknown or not that of the text.",
        "flags",
        "another script; 2 words of another language and none of its own",
    ),
    "mojibake": Check("The text was decoded with the wrong character set.", "flags", "any"),
    "html_entity": Check("The text has HTML entities left over.", "flags", "any"),
}
"""All checks by name, in the order of reports."""
