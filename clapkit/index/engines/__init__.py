"""Search engines for those who outgrew one machine, named by address.

An engine is somebody else's program that keeps vectors with their metadata and is asked over one small protocol. Its
library is an extra of the package, imported when an address asks for it::

    lance:DIR                          LanceDB on a folder, table audio (or text)
    lance:DIR/NAME.lance               another table of it
    s3://BUCKET/NAME.lance             LanceDB on an object store, also gs:// and az://
    milvus:FILE.db                     Milvus Lite, embedded in the process
    milvus+http://HOST:19530/NAME      a Milvus server or cluster, also milvus+https://

Captions go beside the sounds: their table has ``_text`` behind its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError
from clapkit.index.layout import Modality, TableInfo
from clapkit.index.table import EmbeddingTable
from clapkit.types import Reporter

FloatArray = npt.NDArray[np.floating[Any]]

_SCHEMES = "lance:DIR, s3://BUCKET/NAME.lance, gs://…, az://…, milvus:FILE.db, milvus+http://HOST:19530/NAME, milvus+https://…"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_SUFFIX = ".lance"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.

    Attributes:
        num_items: that the engine holds now.
        unchanged: the engine had the table already.
        recall: share of the ten best items that an approximate search finds; None where the search is exact.
    """

    num_items: int
    unchanged: bool
    recall: float | None = None


class Engine(Protocol):
    """A table kept by an engine.

    Attributes:
        address: as it was given, without secrets.
        modality: of the items.
    """

    address: str
    modality: Modality

    def push(
        self,
        table: EmbeddingTable,
        info: TableInfo,
        *,
        reporter: Reporter,
        approximate: bool = False,
        queries: FloatArray | None = None,
    ) -> Pushed:
        """Put a table in the place of the one that the engine has; readers see the old one until it is complete.

        Args:
            table: to send, in batches.
            info: of its folder.
            reporter: progress and messages.
            approximate: have the engine build its approximate index, and measure its recall.
            queries: unit norm [Q, D], to measure recall with; by default rows of the table, which flatter it.

        Raises:
            EmbeddingError: if the engine cannot be used, or holds vectors of another model.
        """
        ...

    def search(self, queries: FloatArray, k: int, *, where: str | None = None) -> list[list[tuple[float, dict[str, Any]]]]:
        """The best items of each query, best first.

        Args:
            queries: unit norm [Q, D].
            k: hits per query; fewer if there are fewer items.
            where: filter, in clapkit's language.

        Returns:
            For each query pairs of a cosine and a row of metadata.

        Raises:
            ConfigError: if the filter cannot be said in the engine's language.
            EmbeddingError: if the engine cannot be used.
            ShapeError: if the widths differ.
        """
        ...

    def count(self) -> int:
        """How many items there are."""
        ...

    def info(self) -> TableInfo:
        """What was pushed: model, width, audio policy."""
        ...

    def close(self) -> None:
        """Let go of connections and locks."""
        ...


def parse(address: str, *, modality: Modality = "audio") -> Engine | None:
    """The engine that an address names; nothing is opened yet.

    Args:
        address: what the user wrote.
        modality: which table of it.

    Returns:
        None if it is no address but a name (``exact``) or a path.

    Raises:
        ConfigError: if the scheme is unknown or the rest does not fit it.
    """
    scheme, colon, rest = address.partition(":")
    if not colon or len(scheme) < 2 or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return None
    reader = _READERS.get(scheme.lower())
    if reader is not None:
        return reader(address, rest, modality)
    if os.path.exists(address):
        return None
    raise ConfigError(f"engine {scheme}:…: unknown scheme {scheme!r}; known: {_SCHEMES}")


def _lance(address: str, rest: str, modality: Modality) -> Engine:
    from clapkit.index.engines.lance import LanceEngine

    if "://" in rest:
        return _lance_store(rest, rest, modality)
    if not rest:
        raise ConfigError(f"engine {address}: expected a folder, for example lance:sounds")
    path = os.path.expanduser(rest).rstrip("/") or "/"
    if not path.endswith(_SUFFIX):
        return LanceEngine(path, modality, address=address, modality=modality)
    folder, name = os.path.split(path)
    return LanceEngine(folder or ".", _table_name(address, name, modality), address=address, modality=modality)


def _lance_store(address: str, rest: str, modality: Modality) -> Engine:
    from clapkit.index.engines.lance import LanceEngine

    _refuse_secrets(address)
    database, _, name = address.rstrip("/").rpartition("/")
    if not name.endswith(_SUFFIX) or database.endswith("/"):
        raise ConfigError(f"engine {address}: expected a table in a bucket, for example s3://BUCKET/sounds{_SUFFIX}")
    return LanceEngine(database, _table_name(address, name, modality), address=address, modality=modality)


def _milvus_file(address: str, rest: str, modality: Modality) -> Engine:
    from clapkit.index.engines.milvus import MilvusEngine

    if not rest.endswith(".db"):
        raise ConfigError(f"engine {address}: expected a file that ends in .db, for example milvus:sounds.db")
    path = os.path.abspath(os.path.expanduser(rest))
    return MilvusEngine(path, _of_modality("clapkit", modality), address=address, modality=modality)


def _milvus_server(address: str, rest: str, modality: Modality) -> Engine:
    from clapkit.index.engines.milvus import MilvusEngine

    _refuse_secrets(address)
    parts = urlsplit(address)
    name = parts.path.strip("/")
    try:
        port = parts.port or 19530
    except ValueError as error:
        raise ConfigError(f"engine {address}: the port is no number from 0 to 65535") from error
    if not parts.hostname or not _NAME.fullmatch(name):
        raise ConfigError(f"engine {address}: expected a host and a collection, for example milvus+http://HOST:19530/sounds")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    uri = f"{parts.scheme.removeprefix('milvus+')}://{host}:{port}"
    return MilvusEngine(uri, _of_modality(name, modality), address=address, modality=modality)


_READERS: dict[str, Callable[[str, str, Modality], Engine]] = {
    "lance": _lance,
    "s3": _lance_store,
    "gs": _lance_store,
    "az": _lance_store,
    "milvus": _milvus_file,
    "milvus+http": _milvus_server,
    "milvus+https": _milvus_server,
}


def _refuse_secrets(address: str) -> None:
    """An address is printed and recorded, so it must not hold a password; the message does not repeat it."""
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"engine {parts.scheme}://…: the address holds credentials or options; give MILVUS_TOKEN, or the variables "
            "of the object store, in the environment"
        )


def _table_name(address: str, file_name: str, modality: Modality) -> str:
    name = file_name.removesuffix(_SUFFIX)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"engine {address}: table name {name!r}, expected up to 100 letters, digits and underscores")
    return _of_modality(name, modality)


def _of_modality(name: str, modality: Modality) -> str:
    return name if modality == "audio" else f"{name}_{modality}"
