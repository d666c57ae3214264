"""What documents of a database say about sources: the one-collection form, and the first comux's four collections.

Lives here: ``Sheet`` (one collection, whole settings) and ``Schedules`` (four collections, ids only). They are given a
reader of collections and know neither the database nor its client; what they raise names collection, document, field
and remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from comux.errors import ConfigError
from comux.options import CamId, SourceOptions, check_cam_id, suggestion

Document = Mapping[str, Any]
Reader = Callable[[str, Mapping[str, Any]], Iterable[Document]]
"""``reader(collection, filter)`` gives the documents in the order of their ``_id``."""

FOUR: Final = ("Model", "Running_Schedule", "Schedule", "Model_Camera")
_PREFIX: Final = "COLLECTION_"


class Form(Protocol):
    """A way of stating sources in documents."""

    @property
    def collections(self) -> tuple[str, ...]:
        """The collections it reads."""
        ...

    def sources(self, read: Reader) -> tuple[SourceOptions, ...]:
        """The sources that are stated.

        Raises:
            ConfigError: something stated is wrong.
        """
        ...


class Sheet:
    """One collection whose documents are whole settings of sources.

    A document is what a mapping in a cameras file is; where it has no ``cam_id``, its ``_id`` is the id.

    Args:
        collection: Its name.
    """

    def __init__(self, collection: str) -> None:
        self.collections = (collection,)

    def sources(self, read: Reader) -> tuple[SourceOptions, ...]:
        (collection,) = self.collections
        found: list[SourceOptions] = []
        stated: dict[str, Any] = {}
        for document in read(collection, {}):
            key = document.get("_id")
            where = f"{at(collection, key)}: "
            settings = {name: _plain(value) for name, value in document.items() if name != "_id"}
            if "cam_id" not in settings:
                settings["cam_id"] = _id_of(key, f"{where}cam_id is missing, and _id")
            try:
                source = SourceOptions(**settings)
            except ConfigError as exc:
                raise ConfigError(f"{where}{exc}") from None
            if str(source.cam_id) in stated:
                raise ConfigError(
                    f"{where}cam_id {source.cam_id!r} is a duplicate of document _id {stated[str(source.cam_id)]!r}: "
                    "ids are unique, 1 and '1' the same"
                )
            stated[str(source.cam_id)] = key
            found.append(source)
        if not found:
            raise ConfigError(
                f"collection {collection!r} is empty or missing: give it at least one document, or correct the name"
            )
        return tuple(found)


class Schedules:
    """The first comux's four collections.

    ``Model`` has one document whose ``category`` is the client's name. Each ``Running_Schedule`` names a ``Schedule``
    by ``schedule_id``, that a ``Model_Camera`` by ``model_camera_id``, and that the camera by ``camera_id``. A
    ``Running_Schedule`` or ``Model_Camera`` with a ``model_id`` counts for that model only. No schedule running is no
    error: there are no cameras then.

    Args:
        client_name: The model's category.
        collections: Names of the four, by ``FOUR``.
    """

    def __init__(self, client_name: str, collections: Mapping[str, str]) -> None:
        self._client_name = client_name
        self._name = dict(collections)

    @property
    def collections(self) -> tuple[str, ...]:
        return tuple(self._name[each] for each in FOUR)

    def sources(self, read: Reader) -> tuple[SourceOptions, ...]:
        model = self._model(read)
        running = [document for document in read(self._name["Running_Schedule"], {}) if _of(model, document)]
        schedules = self._named(read, "Schedule", "Running_Schedule", running, "schedule_id")
        cameras = self._named(read, "Model_Camera", "Schedule", schedules, "model_camera_id")
        ids: dict[str, CamId] = {}  # two schedules of one camera may run at once
        for document in cameras:
            if _of(model, document):
                cam_id = self._camera(document)
                ids.setdefault(str(cam_id), cam_id)
        return tuple(SourceOptions(cam_id=cam_id) for cam_id in ids.values())

    def _model(self, read: Reader) -> Any:
        name = self._name["Model"]
        found = list(read(name, {"category": self._client_name}))
        if len(found) != 1:
            several = f"{len(found)} documents (_id {', '.join(repr(each.get('_id')) for each in found[:3])})"
            raise ConfigError(
                f"collection {name!r}: {several if found else 'no document'} with category {self._client_name!r}, the "
                "client_name; exactly one must have it"
            )
        return found[0].get("_id")

    def _named(self, read: Reader, kind: str, from_kind: str, documents: list[Document], field: str) -> list[Document]:
        """The documents of ``kind`` that ``field`` of ``documents`` names, in their order."""
        name, from_name = self._name[kind], self._name[from_kind]
        wanted: list[tuple[Any, Any]] = []
        for document in documents:
            if document.get(field) is None:
                raise ConfigError(
                    f"{at(from_name, document.get('_id'))}: field {field!r} is missing; it must be the _id of a "
                    f"document in {name!r}"
                )
            wanted.append((document.get("_id"), document[field]))
        if not wanted:
            return []
        found = {_key(each.get("_id")): each for each in read(name, {"_id": {"$in": [key for _, key in wanted]}})}
        for from_id, key in wanted:
            if _key(key) not in found:
                raise ConfigError(
                    f"{at(from_name, from_id)}: {field} {key!r} is no _id in collection {name!r}; "
                    "correct it, or remove the document"
                )
        return [found[_key(key)] for _, key in wanted]

    def _camera(self, document: Document) -> CamId:
        where = at(self._name["Model_Camera"], document.get("_id"))
        if document.get("camera_id") is None:
            raise ConfigError(f"{where}: field 'camera_id' is missing; it must be the camera's id")
        return _id_of(document["camera_id"], f"{where}: camera_id")


def form_of(client_name: str | None, collections: object) -> Form:
    """The form that ``db_collections`` means: a name is one collection, a mapping (or ``None``) the four.

    Raises:
        ConfigError: it means neither.
    """
    if isinstance(collections, str) and collections:
        return Sheet(collections)
    if collections is None:
        collections = {}
    if not isinstance(collections, Mapping):
        raise ConfigError(
            f"db_collections of type {type(collections).__name__}: give the name of one collection, or a mapping with "
            f"the names of {', '.join(FOUR)}"
        )
    names = {each: each for each in FOUR}
    for key, name in collections.items():
        kind = str(key).removeprefix(_PREFIX)
        if kind not in names:
            raise ConfigError(f"db_collections: there is no {key!r}{suggestion(kind, FOUR)}")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"db_collections: {key}={name!r} is no name of a collection")
        names[kind] = name
    if not isinstance(client_name, str) or not client_name:
        raise ConfigError(
            f"client_name {client_name!r}: the four collections are searched for a model of that category; give it, or "
            "db_collections='name' of one collection with whole settings"
        )
    return Schedules(client_name, names)


def at(collection: str, key: Any) -> str:
    """Where a document stands, for errors."""
    text = repr(key)
    return f"collection {collection!r}, document _id {text if len(text) <= 80 else text[:77] + '…'}"


def _of(model: Any, document: Document) -> bool:
    return document.get("model_id") in (None, model)


def _key(value: Any) -> Any:
    """Ids of any type as keys of a dictionary; 1 and 1.0 are the same to the database, 1 and "1" are not."""
    return value if isinstance(value, (int, float)) else repr(value)


def _id_of(value: Any, what: str) -> CamId:
    """A source's id out of whatever a database keeps ids as."""
    plain = _plain(value)
    if not isinstance(plain, (str, int)) or isinstance(plain, bool):
        raise ConfigError(f"{what} {plain!r} is {type(value).__name__}; write text or a whole number")
    try:
        return check_cam_id(plain)
    except ConfigError as exc:
        raise ConfigError(f"{what}: {exc}") from None


def _plain(value: Any) -> Any:
    """Python's own types instead of the database's: whole numbers, and object ids as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if type(value).__name__ == "ObjectId":
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value
