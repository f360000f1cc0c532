"""Audio that stays in its shard: how a manifest names it, where ``clapkit.data.members`` finds it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clapkit.data.members import PLAIN_SUFFIX
from clapkit.data.recipes._extraction import ExtractionError
from clapkit.data.recipes._shard_paths import Shard
from clapkit.data.tar_index import compression
from clapkit.errors import ConfigError


class InPlace:
    """Names members of shards.

    Args:
        shards: all that there are.

    Raises:
        ConfigError: if the members of one cannot be read where they lie.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._root = common_folder(shards)
        for shard in shards:
            kind = compression(shard.path)
            if kind is not None:
                raise ConfigError(
                    f"{shard.path}: is compressed ({kind}), its sounds cannot be read in place; leave -O unpack=false out, or "
                    "unpack it to a plain .tar"
                )
            if shard.path.suffix.lower() != PLAIN_SUFFIX:
                raise ConfigError(f"{shard.path}: -O unpack=false needs shards whose names end in .tar; rename it")

    def path(self, shard: Path, member: str) -> str:
        """The path of a member, relative to the folder of all shards.

        Raises:
            ExtractionError: if it cannot be named in a manifest.
        """
        path = f"{shard.relative_to(self._root).as_posix()}/{member}"
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ExtractionError("its name is not UTF-8, so that no manifest can hold it; rename it or unpack") from error
        return path


def common_folder(shards: Sequence[Shard]) -> Path:
    """The innermost folder that holds all shards."""
    return Path(os.path.commonpath([shard.path.parent for shard in shards]))
