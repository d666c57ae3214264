"""Sources stated in a MongoDB database. The only door to pymongo.

Lives here: ``MongoRegistry`` and the first comux's ``MongoConnect``; what documents mean is in ``mongo_documents``.

**Waiting for a change.** Where the server has change streams, one is open per collection. Where it has none (a single
server, another database that speaks the protocol, a user who may not), the collections are read every ``poll_period``
seconds. Either way it is the checksum over what was read that says whether something changed since the last ``fetch``:
it is compared when streams are opened (which closes the gap between a ``fetch`` and them, or while the database was
away), when one of them reports something, and at every look. So an event that was missed or told twice does no harm,
and no place in a stream has to be kept.

**Threads.** The client is pymongo's, which is thread-safe. ``fetch`` and ``status`` are for any thread,
``wait_for_change`` for one; ``close`` from another thread ends a wait within half a second, or, where the server has
stopped answering in the middle of a reply, within ``timeout``. A child of a fork inherits a registry that only raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final
from urllib.parse import unquote_plus

import bson
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.change_stream import CollectionChangeStream
from pymongo.collection import Collection
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)

from comux.control.mongo_documents import form_of
from comux.control.registry import Registry
from comux.errors import (
    AuthenticationError,
    ClosedError,
    ComuxError,
    ConfigError,
    ConnectError,
    NotAuthorizedError,
    TlsError,
    WaitTimeoutError,
)
from comux.options import SourceOptions, check_positive, check_timeout
from comux.redaction import is_secret

_RAW: Final = CodecOptions(document_class=RawBSONDocument)
_AWAIT: Final = 0.5  #: seconds for which all streams together are asked in turn
_BURST: Final = 1.0  #: seconds for which events are passed over before the documents are read again
_TEXT: Final = 400
_NO_COMMAND, _UNAUTHORIZED = 59, 13
_REFUSED_CREDENTIALS: Final = frozenset({11, 18})
_URL: Final = re.compile(r"mongodb(\+srv)?://(?:(?P<user>[^/?@]*)@)?(?P<hosts>[^/?@]+)(?:/(?P<rest>[^@?]*))?(?:\?.*)?")


class MongoRegistry(Registry):
    """Sources stated in a database, read again at each ``fetch``. Nothing is ever written there.

    Args:
        client_name: The first comux's form: the category of the model whose cameras are meant.
        db_url: ``mongodb://user:password@host:port/?options``. It is never shown whole.
        db_database: Name of the database.
        db_collections: Name of one collection whose documents are whole settings of sources; or a mapping with the
            names of the first comux's four (``Model``, ``Running_Schedule``, ``Schedule``, ``Model_Camera``, also with
            ``COLLECTION_`` before it); ``None``: the four by these very names.
        timeout: Seconds to wait for the server: to find it, to connect, and for a reply. The URL's own options win.
        poll_period: Seconds between two looks where there are no change streams.
        max_documents, max_bytes: Most that is read in one ``fetch``.

    Nothing is connected before the first use. Threads: see the module. A context manager.

    Raises:
        ConfigError: an argument is wrong; a ``db_url`` that is none is not repeated in the message.
    """

    def __init__(
        self,
        client_name: str | None = None,
        *,
        db_url: str,
        db_database: str,
        db_collections: str | Mapping[str, str] | None = None,
        timeout: float = 5.0,
        poll_period: float = 5.0,
        max_documents: int = 10_000,
        max_bytes: int = 16 << 20,
    ) -> None:
        self._form = form_of(client_name, db_collections)
        self._server, self._secrets = _read_url(db_url)
        if not isinstance(db_database, str) or not db_database:
            raise ConfigError(f"db_database {db_database!r} is no name of a database")
        self._database = db_database
        self._timeout = _seconds(timeout, "timeout")
        self._poll_period = _seconds(poll_period, "poll_period")
        self._max_documents = check_positive(max_documents, "max_documents")
        self._max_bytes = check_positive(max_bytes, "max_bytes")
        try:
            self._client: MongoClient[dict[str, Any]] = MongoClient(db_url, connect=False, **self._options(db_url))
            self._client[db_database]  # checks the name
        except (PyMongoError, ValueError, TypeError) as exc:
            raise self._translated(exc) from None
        self._pid = os.getpid()
        self._seen: bytes | None = None  # checksum of what the last fetch read
        self._streams: list[CollectionChangeStream[Any]] | None = None  # None: not looked yet; empty: there are none
        self._next_look = 0.0
        self._note: str | None = None
        self._trouble: tuple[float, str] | None = None  # Unix seconds of the first of these errors, text of the last
        self._read_at: float | None = None

    def _options(self, db_url: str) -> dict[str, Any]:
        milliseconds = int(self._timeout * 1000)
        ours: dict[str, Any] = {
            "appname": "comux",
            "serverSelectionTimeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,
            "socketTimeoutMS": milliseconds + int(_AWAIT * 1000),
        }
        stated = {pair.partition("=")[0].lower() for pair in db_url.partition("?")[2].split("&")}
        return {name: value for name, value in ours.items() if name.lower() not in stated}

    # -- reading ---------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Find the server and have it answer; ``fetch`` and ``wait_for_change`` do that by themselves.

        Raises:
            ComuxError: as ``fetch``.
        """
        self._check_open()
        try:
            self._client.admin.command("ping")
        except PyMongoError as exc:
            raise self._failed(exc) from None

    def fetch(self) -> tuple[SourceOptions, ...]:
        """The sources as they are stated now, in the order of the documents' ``_id``, checked.

        Raises:
            ConfigError: a document is wrong, or too much is stated; names collection, document, field and remedy.
            ConnectError: the server cannot be reached (retriable). TlsError, AuthenticationError, NotAuthorizedError:
                it does not let us in. WaitTimeoutError: it took too long. ClosedError.
        """
        found, self._seen = self._look()
        if isinstance(found, ConfigError):
            raise found
        return found

    def _look(self) -> tuple[tuple[SourceOptions, ...] | ConfigError, bytes]:
        """What the documents say, be it right or wrong, and the checksum of all that was read for it."""
        self._check_open()
        reading = _Reading(self._client, self._database, self._timeout, self._max_documents, self._max_bytes)
        found: tuple[SourceOptions, ...] | ConfigError
        try:
            found = self._form.sources(reading)
        except ConfigError as exc:
            found = ConfigError(f"database {self._database!r} at {self._server}: {exc}")
        except (PyMongoError, BSONError) as exc:
            raise self._failed(exc) from None
        self._trouble, self._read_at = None, time.time()
        return found, reading.checksum.digest()

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise ClosedError("this registry was inherited through a fork; make a new one in the child")
        if self._closing.is_set():
            raise ClosedError(f"the registry of database {self._database!r} at {self._server} is closed")

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait_for_change(self, timeout: float | None = None) -> bool:
        """Wait until the documents are not what the last ``fetch`` read.

        Args:
            timeout: Seconds; ``None`` waits, ``0`` looks once.

        Returns:
            ``True``: fetch again. ``False``: timed out, or closed meanwhile.

        Raises:
            ComuxError: as ``fetch``, but for what is wrong in documents; the next call begins anew.
        """
        seconds = check_timeout(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        self._check_open()
        try:
            while not self._closing.is_set():
                if self._changed(deadline):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
        except (PyMongoError, ComuxError) as exc:
            self._drop_streams()
            if not self._closing.is_set():
                raise self._failed(exc) if isinstance(exc, PyMongoError) else exc from None
        return False

    def _changed(self, deadline: float | None) -> bool:
        """Wait a while, at most to ``deadline``; whether there is something to fetch."""
        if self._streams is None:
            self._streams = self._open_streams()
            return self._differs()
        if self._streams:
            return self._told(self._streams, deadline)
        pause = self._next_look - time.monotonic()
        if deadline is not None and deadline - time.monotonic() < pause:
            self._closing.wait(max(0.0, deadline - time.monotonic()))
            return False
        return not self._closing.wait(max(0.0, pause)) and self._differs()

    def _differs(self) -> bool:
        _, checksum = self._look()
        self._next_look = time.monotonic() + self._poll_period
        return checksum != self._seen

    def _open_streams(self) -> list[CollectionChangeStream[Any]]:
        """One stream per collection; none where the server refuses, with a note why."""
        streams: list[CollectionChangeStream[Any]] = []
        options: dict[str, Any] = {"max_await_time_ms": int(_AWAIT * 1000 / len(self._form.collections))}
        try:
            if "operationTime" not in self._client.admin.command("ping"):
                options["start_at_operation_time"] = bson.Timestamp(self._server_time(), 0)
            for name in self._form.collections:
                streams.append(self._client[self._database][name].watch(**options))
        except OperationFailure as exc:
            for stream in streams:
                stream.close()
            if exc.code in _REFUSED_CREDENTIALS:
                raise
            self._note = f"no change stream (code {exc.code}): {self._text(exc)}"
            return []
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        self._note = None
        return streams

    def _server_time(self) -> int:
        """Unix seconds by the server's clock, for a server that says no ``operationTime`` (others must not need it)."""
        told = self._client.admin.command("isMaster").get("localTime")
        return int(told.replace(tzinfo=UTC).timestamp() if isinstance(told, datetime) else time.time())

    def _told(self, streams: list[CollectionChangeStream[Any]], deadline: float | None) -> bool:
        """Ask each stream once. A stream that has ended (its collection was dropped) has all of them opened anew."""
        for stream in streams:
            began = time.monotonic()
            event = stream.try_next()
            if not stream.alive:
                self._drop_streams()
                return False
            if event is not None:
                if self._differs():
                    return True
                self._pass_over(stream)
                return self._differs()
            # Some servers answer at once that there is nothing.
            left = began + _AWAIT / len(streams) - time.monotonic()
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            if left > 0 and self._closing.wait(left):
                return False
        return False

    def _pass_over(self, stream: CollectionChangeStream[Any]) -> None:
        """The rest of a burst whose documents were fetched already: not one more look for each of its events."""
        end = time.monotonic() + _BURST
        while time.monotonic() < end and not self._closing.is_set() and stream.alive and stream.try_next() is not None:
            pass

    def _drop_streams(self) -> None:
        streams, self._streams = self._streams or [], None
        for stream in streams:
            try:
                stream.close()
            except PyMongoError:  # it is gone with the server that held it
                pass

    # -- telling ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """As it stands, JSON-ready: ``address``, ``database``, ``collections``; ``watched_by`` ``"stream"``, ``"poll"``
        or ``None`` (not watched yet), and ``note`` why there is no stream; ``read_at`` (Unix seconds of the last good
        look); while the server cannot be used ``unreachable_since`` (Unix seconds) and ``error``. Never waits.
        """
        trouble, streams = self._trouble, self._streams
        return {
            "address": self._server,
            "database": self._database,
            "collections": list(self._form.collections),
            "watched_by": None if streams is None else "stream" if streams else "poll",
            "note": self._note,
            "read_at": self._read_at,
            "unreachable_since": None if trouble is None else trouble[0],
            "error": None if trouble is None else trouble[1],
        }

    def _failed(self, exc: Exception) -> ComuxError:
        """The error as one of comux' own, noted for ``status``."""
        error = self._translated(exc)
        if not isinstance(error, ClosedError):
            self._trouble = (time.time() if self._trouble is None else self._trouble[0], str(error))
        return error

    def _translated(self, exc: Exception) -> ComuxError:
        where = f"MongoDB at {self._server}"
        text = self._text(exc)
        code = getattr(exc, "code", None)
        if isinstance(exc, InvalidOperation):
            return ClosedError(f"the registry of database {self._database!r} at {self._server} was closed meanwhile")
        if isinstance(exc, BSONError):
            return ConfigError(f"{where}: what it sent is no document: {text}; does another server listen there?")
        if isinstance(exc, (InvalidURI, ValueError, TypeError)):
            return ConfigError(f"db_url: pymongo does not take it ({type(exc).__name__}); {_REMEDY}")
        if code in _REFUSED_CREDENTIALS or (code == _NO_COMMAND and "sasl" in text.lower()):
            return AuthenticationError(
                f"{where} refused the credentials of db_url (code {code}): {text}; correct user, password or authSource"
            )
        if code == _UNAUTHORIZED:
            return NotAuthorizedError(
                f"{where} does not let us read database {self._database!r}: {text}; grant the role 'read' on it, or "
                "put user and password into db_url"
            )
        if isinstance(exc, ConnectionFailure):
            if "SSL" in text or "CERTIFICATE" in text or "TLS" in text:
                return TlsError(f"{where}: no secure connection: {text}; see tls= and tlsCAFile= of db_url")
            return ConnectError(
                f"{where} cannot be reached within {self._timeout:g} s: {text}; does it run, and does db_url name it?"
            )
        if getattr(exc, "timeout", False):
            return WaitTimeoutError(f"{where} did not answer within {self._timeout:g} s: {text}")
        if isinstance(exc, ConfigurationError):
            return ConfigError(f"{where}: {text}; correct db_url or db_database")
        return ConnectError(f"{where}: {type(exc).__name__} (code {code}): {text}")

    def _text(self, exc: Exception) -> str:
        """The driver's words in one line, short, and without what must not be shown."""
        details = getattr(exc, "details", None)
        text = str(details.get("errmsg") or exc) if isinstance(details, Mapping) else str(exc)
        text = " ".join(text.partition(", Topology Description")[0].partition(" (configured timeouts")[0].split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"

    def __repr__(self) -> str:
        return f"<MongoRegistry {self._server} {self._database}: {', '.join(self._form.collections)}>"

    # -- life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End waiting calls and the client with its threads. Idempotent; nothing in a child of a fork."""
        if os.getpid() != self._pid:
            return
        self._closing.set()
        with contextlib.suppress(PyMongoError):  # of a cursor that another thread's wait has left just now
            self._client.close()

    def __enter__(self) -> MongoRegistry:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class MongoConnect(MongoRegistry):
    """``MongoRegistry`` by the first comux's words: ``connect()``, ``fetch()``, ``ret_cam_ids()``.

    Args:
        client_name, db_url, db_database, db_collections: As ``MongoRegistry``.
        options: Further options of ``MongoRegistry``.
    """

    def __init__(
        self,
        client_name: str,
        db_url: str,
        db_database: str,
        db_collections: str | Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(client_name, db_url=db_url, db_database=db_database, db_collections=db_collections, **options)


class _Reading:
    """One look at a database: a reader of collections for ``mongo_documents`` that keeps count and checksum."""

    def __init__(
        self, client: MongoClient[dict[str, Any]], database: str, timeout: float, max_documents: int, max_bytes: int
    ) -> None:
        self._database = client[database]
        self._milliseconds = int(timeout * 1000)
        self._max_documents, self._max_bytes = max_documents, max_bytes
        self._documents = self._bytes = 0
        self.checksum = hashlib.sha256()

    def __call__(self, collection: str, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The documents wanted, in the order of their ``_id``.

        Raises:
            ConfigError: more than the limits allow, or one that cannot be decoded. PyMongoError.
        """
        self.checksum.update(collection.encode() + b"\0")
        handle: Collection[Any] = self._database.get_collection(collection, codec_options=_RAW)
        find = handle.find(wanted, limit=self._max_documents + 1, max_time_ms=self._milliseconds)
        with find.sort("_id", 1) as cursor:
            for document in cursor:
                self._count(collection, len(document.raw))
                self.checksum.update(document.raw)
                yield self._decoded(collection, document)

    def _count(self, collection: str, size: int) -> None:
        self._documents += 1
        self._bytes += size
        if self._documents > self._max_documents or self._bytes > self._max_bytes:
            raise ConfigError(
                f"collection {collection!r}: more than max_documents={self._max_documents} documents or "
                f"max_bytes={self._max_bytes} bytes to read; is it the right collection? Else raise the limits"
            )

    @staticmethod
    def _decoded(collection: str, document: RawBSONDocument) -> dict[str, Any]:
        try:
            return dict(bson.decode(document.raw))
        except (BSONError, ValueError, OverflowError) as exc:
            raise ConfigError(f"collection {collection!r}: a document cannot be decoded: {exc}") from None


_REMEDY: Final = (
    "write mongodb://host:port/ or mongodb://user:password@host:port/, with what is special in user and password "
    "percent-encoded (urllib.parse.quote_plus)"
)


def _read_url(url: object) -> tuple[str, Sequence[str]]:
    """The hosts of a URL, fit to be shown, and what in it must not be.

    Raises:
        ConfigError: it is none. It is not repeated: what stands where is not known then.
    """
    if not isinstance(url, str):
        raise ConfigError(f"db_url is of type {type(url).__name__}, not text; {_REMEDY}")
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigError(f"db_url is no URL of a MongoDB server; {_REMEDY}")
    secrets = {(found["user"] or "").partition(":")[2]}
    for name, _, value in (pair.partition("=") for pair in url.partition("?")[2].split("&")):
        if is_secret(name) or name.lower() == "authmechanismproperties":
            secrets.add(value)
    secrets |= set(map(unquote_plus, secrets))
    return found["hosts"], sorted(secrets - {""}, key=len, reverse=True)


def _seconds(value: object, what: str) -> float:
    seconds = check_timeout(value, what)
    if not seconds:
        raise ConfigError(f"{what} {value!r} is no time: give seconds above 0")
    return seconds
