"""Everything clapkit raises on purpose.

One class per cause, so that a caller can tell a broken file from a mistyped option::

    ClapkitError
    ├── ConfigError          an option, or a combination of options, that cannot be meant
    ├── UnknownNameError     a plug-in, option key, run or metric that does not exist; names the closest
    ├── ManifestError        a manifest, table or label that cannot be used
    ├── AudioError           an audio file that cannot be decoded as its header says
    ├── ShapeError           arrays whose shapes do not fit each other
    ├── CheckpointError      weights, optimiser state or model configuration that cannot be loaded
    ├── EmbeddingError       an embedding table that is damaged or made by another model
    ├── MetricError          scores that cannot be ranked
    ├── NumericalError       a loss or gradient that is not finite
    ├── ProcessError         another process of a training that ended
    └── RunDirError          a run directory that is in use, not empty, unfinished or missing

The command line prints the message on one line and exits with code 1. A message names the thing, what was found, what
was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClapkitError(Exception):
    """Base of all errors that clapkit raises on purpose."""


class ConfigError(ClapkitError):
    """An option, or a combination of options, that cannot be meant."""


class UnknownNameError(ClapkitError):
    """A name that does not exist; the message offers the closest known one.

    Args:
        kind: what was looked for, for example ``"loss"``.
        name: what was given.
        known: the names that exist.
        hint: an extra sentence for the message.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        closest = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        offer = f"did you mean {closest[0]!r}? " if closest else ""
        listing = ", ".join(self.known) or "none"
        super().__init__(f"unknown {kind} {name!r}: {offer}known: {listing}{'; ' + hint if hint else ''}")


class ManifestError(ClapkitError):
    """A manifest, table or label that cannot be used."""


class AudioError(ClapkitError):
    """An audio file that cannot be decoded as its header says.

    Args:
        message: what is wrong.
        check: name of the check of ``prepare`` that this is a finding of.
    """

    def __init__(self, message: str, *, check: str = "unreadable") -> None:
        super().__init__(message)
        self.check = check


class ShapeError(ClapkitError):
    """Arrays whose shapes do not fit each other."""


class CheckpointError(ClapkitError):
    """Weights, optimiser state or model configuration that cannot be loaded."""


class EmbeddingError(ClapkitError):
    """An embedding table that is damaged or made by another model."""


class MetricError(ClapkitError):
    """Scores that cannot be ranked."""


class NumericalError(ClapkitError):
    """A loss or gradient that is not finite."""


class ProcessError(ClapkitError):
    """Another process of the same training that ended before its work was done."""


class RunDirError(ClapkitError):
    """A run directory that is in use, not empty, unfinished or missing."""
