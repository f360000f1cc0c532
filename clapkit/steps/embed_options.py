"""What the options of ``clapkit embed`` mean together, looked at before anything is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clapkit import registry
from clapkit.config import EmbedConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError
from clapkit.index import engines
from clapkit.steps import inputs
from clapkit.steps.embed_input import is_foreign
from clapkit.training.distributed import launched

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a manifest.

    Attributes:
        number: of the part, from 0.
        count: of all parts.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, manifest: Manifest) -> Manifest:
        """The clips of this part, which stand together in the manifest; no two parts differ by more than one clip.

        The part keeps the fingerprint of the whole, by which the parts of one manifest are known.

        Raises:
            ConfigError: if there are fewer clips than parts.
        """
        if self.count > len(manifest):
            raise ConfigError(f"shard {self}: {manifest.name} has {len(manifest)} clips, expected no more parts than clips")
        first, last = (len(manifest) * number // self.count for number in (self.number, self.number + 1))
        return Manifest(manifest.clips[first:last], root=manifest.root, name=manifest.name, fingerprint=manifest.fingerprint)


def parse_shard(text: str) -> Shard:
    """Read ``i/n``.

    Raises:
        ConfigError: if it is none, or i is not below n.
    """
    match = _SHARD.fullmatch(text)
    shard = Shard(int(match[1]), int(match[2])) if match else None
    if shard is None or not shard.number < shard.count:
        raise ConfigError(f"--shard {text}: expected i/n with i from 0 to n - 1, for example 0/4, 1/4, 2/4 and 3/4")
    return shard


def index_options(config: EmbedConfig) -> Mapping[str, Any]:
    """The options of ``-O`` for the index that is to be built.

    Raises:
        UnknownNameError: if the index knows no such option, or there is none to be built.
        ConfigError: if an option cannot be read.
    """
    if config.index == "none":
        inputs.refuse_options(config.options)
        return {}
    options = registry.parse_assignments(config.options)
    registry.build("index", config.index, options)
    return options


def check(config: EmbedConfig) -> None:
    """Make sure that the options make sense together.

    Raises:
        ConfigError: if they do not.
        UnknownNameError: if an option of ``-O`` is unknown.
    """
    index_options(config)
    if config.shard is not None:
        parse_shard(config.shard)
    if config.push is not None and engines.parse(config.push) is None:
        raise ConfigError(f"--push {config.push}: expected lance:DIR, milvus:FILE.db or milvus+http://HOST:PORT/COLLECTION")
    if config.ids is not None and not is_foreign(config):
        raise ConfigError(f"--ids {config.ids}: belongs to vectors; name a .npy file as the input")
    if config.merge:
        _refuse("--merge", "the parts say how they were embedded", _given(config, "model", *_OF_EMBEDDING), config)
    elif is_foreign(config):
        _refuse(f"{config.inputs[0]}", "the vectors are made already", _given(config, *_OF_EMBEDDING), config)
    if config.update:
        _refuse("--update", "a run is brought up to date as a whole, where it is", _given(config, *_OF_A_NEW_RUN), config)
    elif config.shard is not None:
        _refuse("--shard", "torchrun makes the parts itself", [], config)
    if config.shard is not None and config.index != "none":
        raise ConfigError(f"--index {config.index}: is built over the whole table; give it to embed --merge")
    if config.shard is not None and config.push is not None:
        raise ConfigError(f"--push {config.push}: takes the whole table; give it to embed --merge")


_OF_EMBEDDING = ("split", "lang", "window_s", "hop_s", "shard", "update", "cache")
_OF_A_NEW_RUN = ("shard", "resume", "overwrite", "skip_existing")


def _given(config: EmbedConfig, *names: str) -> list[str]:
    return ["--" + name.replace("_", "-") for name in names if getattr(config, name) not in (None, False)]


def _refuse(what: str, reason: str, flags: list[str], config: EmbedConfig) -> None:
    if flags:
        raise ConfigError(f"{what}: does not go together with {', '.join(flags)}: {reason}; leave them out")
    if launched()[1] > 1:
        raise ConfigError(f"{what}: runs in one process, not under torchrun ({reason}); start clapkit embed itself")
