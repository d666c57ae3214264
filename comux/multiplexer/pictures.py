"""Pictures that wait to be taken, and the one lock under which everything that a batch depends on changes.

**Problem.** Source threads put pictures, callers take them, the lag between the two is bounded, and an interrupt
(Ctrl-C in the middle of a batch) must neither lose nor duplicate one.

**Store.** ``every_frame``: a full store blocks the source's thread until half of it is empty. ``freshest``: the store
holds two pictures; a third pushes out the oldest, cause ``superseded``. The mode may change at any time.

**Taking.** A caller *claims* a picture (it leaves the queue and is written into the caller's list *first*), converts it
outside the lock, and *commits*: only then it is delivered in the books. Whatever interrupts in between, ``give_back``
puts the claimed picture where it was. In the books it is held at ``pictures`` all the while. The list is written before
the queue changes, and ``give_back`` looks whether the queue's head is that picture already, so an interrupt between
the two statements is harmless.

**Bytes.** Each store has a limit, and all stores of a manager have one together: what was put in counts until it is
delivered or dropped. Room for one picture is kept for each store that has none, so a store that has one waits
(``every_frame``) or gives its older one up (``freshest``) early enough, one that has none is let in at once, and
nothing waits for what cannot come. How large a source's pictures are is known from its first, so only those may go
beyond.

**Lock.** ``Hub.lock`` guards every store and every source's state of one manager; operations under it are short and
never call into engines, codecs or user code. Order: hub lock before an account's lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy.typing as npt

from comux.account import Account
from comux.decoders.interface import Identity, Picture
from comux.multiplexer.retention import record_bytes
from comux.records import Record

StoreMode = Literal["every_frame", "freshest"]

PLACE: Final = "pictures"
FRESHEST_PICTURES: Final = 2
EVERY_FRAME_PICTURES: Final = 64


class Hub:
    """The lock, and the condition on which callers wait for pictures and for changes of state.

    Args:
        max_bytes: Of pictures in all stores together; ``None``: only each store's own limit holds.

    Attributes:
        lock: Guards stores and states.
        arrived: Notified when a store gains its first picture, when a state changes and when the table changes.
        eager: How many waiting callers want to hear of every picture.
        nbytes: Of pictures that were put in and are neither delivered nor dropped yet.
        reserved: Bytes kept free for the next pictures of stores that have none.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.lock = threading.Lock()
        self.arrived = threading.Condition(self.lock)
        self.eager = 0
        self.max_bytes = max_bytes
        self.nbytes = self.reserved = 0
        self._crowded: set[threading.Condition] = set()

    def crowded(self, entry: Entry, room: threading.Condition) -> bool:
        """Whether ``entry`` is too much for all stores together; ``room`` is notified when that may have changed."""
        over = self.max_bytes is not None and self.nbytes + self.reserved + entry.nbytes > self.max_bytes
        if over:
            self._crowded.add(room)
        return over

    def freed(self, nbytes: int) -> None:
        """So many bytes have left a store."""
        self.nbytes -= nbytes
        for room in self._crowded:
            room.notify()
        self._crowded.clear()  # whoever still has no room says so again


@dataclass(eq=False, slots=True)
class Entry:
    """A picture that waits.

    Attributes:
        record: Its packet.
        packet: The record that the books know: as the consumer handed it, which is another one than ``record`` where
            frames are shared.
        identity: Of the packet.
        degraded: Decoded across damage.
        decoded_ns: Monotonic nanoseconds at which the decoder gave it out.
        nbytes: What it keeps alive.
        picture: Where it is converted by whoever takes it; else ``None``, so that the codec's frame is free.
        array: Where it is converted already.
        counted: ``False`` for the further pictures of one record, which the books do not know.
        stored_ns: Monotonic nanoseconds at which it came in.
    """

    record: Record
    identity: Identity
    degraded: bool
    decoded_ns: int
    nbytes: int
    picture: Picture | None
    array: npt.NDArray[Any] | None
    counted: bool = True
    packet: Record | None = None
    stored_ns: int = field(default_factory=time.monotonic_ns)

    @classmethod
    def of(cls, picture: Picture, array: npt.NDArray[Any] | None, packet: Record, *, counted: bool) -> Entry:
        """A picture that came out of the decoder just now; ``array``: what it was converted to, where it was."""
        nbytes = picture.nbytes if array is None else array.nbytes + record_bytes(picture.record)
        kept = picture if array is None else None
        return cls(
            picture.record,
            picture.identity,
            picture.degraded,
            picture.decoded_ns,
            nbytes,
            kept,
            array,
            counted,
            packet,
        )


class PictureStore:
    """One source's waiting pictures, oldest first. Every method is called with ``hub.lock`` held, but for ``put``,
    ``newest_copy`` and ``waiting_bytes``.

    Args:
        hub: Shared by all stores of a manager.
        account: The source's books; pictures are held at ``pictures``.
        mode: See the module.
        max_bytes: Most bytes waiting in ``every_frame``; one picture is always let in.
        max_pictures: Most pictures waiting in ``every_frame``.

    Attributes:
        left: Called with the packet of every picture that was delivered or dropped, but for those that still wait when
            the store closes. Must be short: ``hub.lock`` is held.
    """

    def __init__(
        self,
        hub: Hub,
        account: Account,
        mode: StoreMode,
        *,
        max_bytes: int = 24 << 20,
        max_pictures: int = EVERY_FRAME_PICTURES,
    ) -> None:
        self._hub = hub
        self._account = account
        self._room = threading.Condition(hub.lock)
        self._entries: deque[Entry] = deque()
        self._closed = False
        self.mode: StoreMode = mode
        self.max_bytes = max_bytes
        self.max_pictures = max_pictures
        self.left: Callable[[Record], None] | None = None
        self._closed_by = "removed"
        self._picture_bytes = self._reserved = 0  # of its newest; and what of it ``hub.reserved`` holds
        self.blocked = False  #: a source's thread waits for room

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes that wait."""
        return sum(entry.nbytes for entry in self._entries)

    def waiting_bytes(self) -> int:
        """Bytes that wait. Called without ``hub.lock``."""
        with self._hub.lock:
            return self.nbytes

    def put(self, entry: Entry, place: str) -> bool:
        """Take a picture in, from the source's thread; waits for room in ``every_frame``.

        Args:
            entry: The picture; held by the books at ``place`` until it is in.
            place: Where it comes from.

        Returns:
            ``False`` where the store was closed; the books are unchanged then.
        """
        with self._hub.lock:
            while self._full(entry) and not self._closed:
                self.blocked = True
                self._room.wait()
            self.blocked = False
            if self._closed:
                return False
            if self.mode == "freshest":
                while len(self._entries) >= FRESHEST_PICTURES or (
                    self._entries and self._hub.crowded(entry, self._room)
                ):
                    self.drop_oldest("superseded")
            if entry.counted:
                self._account.move(place, PLACE)
            entry.stored_ns = time.monotonic_ns()
            self._entries.append(entry)
            self._hub.nbytes += entry.nbytes
            self._picture_bytes = entry.nbytes
            self._reserve()
            if len(self._entries) == 1 or self._hub.eager:
                self._hub.arrived.notify_all()
            return True

    def _full(self, entry: Entry) -> bool:
        if self.mode == "freshest" or not self._entries:
            return False
        if len(self._entries) >= self.max_pictures or self.nbytes + entry.nbytes > self.max_bytes:
            return True
        return self._hub.crowded(entry, self._room)

    def _made_room(self) -> None:
        """Wake the source's thread once half of the store is empty: each wake-up costs both threads the interpreter."""
        if self.blocked and 2 * len(self._entries) <= self.max_pictures and 2 * self.nbytes <= self.max_bytes:
            self._room.notify()

    def oldest(self) -> Entry | None:
        """The picture that has waited longest."""
        return self._entries[0] if self._entries else None

    def peek(self) -> Entry | None:
        """The picture that ``claim`` would take: the newest in ``freshest``, else the oldest."""
        if not self._entries:
            return None
        return self._entries[-1 if self.mode == "freshest" else 0]

    def newest_copy(self) -> tuple[Record, npt.NDArray[Any]] | None:
        """The packet and a copy of the picture that came in last and still waits. Called without ``hub.lock``."""
        with self._hub.lock:
            if not self._entries:
                return None
            entry = self._entries[-1]
            copy = None if entry.array is None else entry.array.copy()  # its taker may write into it
        if copy is None:
            assert entry.picture is not None
            copy = entry.picture.to_array()
        return entry.record, copy

    def claim(self, into: list[Entry]) -> None:
        """Take one picture into ``into``; in ``freshest`` the older ones are dropped, ``superseded``."""
        while self.mode == "freshest" and len(self._entries) > 1:
            self.drop_oldest("superseded")
        if self._entries:
            into.append(self._entries[0])
            self._entries.popleft()
            self._reserve()

    def give_back(self, entry: Entry) -> None:
        """Undo ``claim``."""
        if self._closed:
            self._forget(entry, self._closed_by, back=True)
        elif not self._entries or self._entries[0] is not entry:
            self._entries.appendleft(entry)
            self._reserve()
            self._hub.arrived.notify_all()

    def commit(self, entry: Entry) -> None:
        """A claimed picture is delivered: counted, and there is room."""
        self._hub.freed(entry.nbytes)
        if entry.counted:
            self._account.deliver(PLACE)
            self._tell(entry)
        self._made_room()

    def spoil(self, entry: Entry, cause: str) -> None:
        """A claimed picture could not be used after all."""
        self._forget(entry, cause)
        self._made_room()

    def drop_oldest(self, cause: str) -> None:
        """Give up the oldest picture."""
        entry = self._entries.popleft()
        self._reserve()
        self._forget(entry, cause)
        self._made_room()

    def drop_all(self, cause: str) -> None:
        """Give up everything that waits."""
        while self._entries:
            self.drop_oldest(cause)

    def drop_older_than(self, capture_ns: int, cause: str, captured: Callable[[Entry], int]) -> int:
        """Give up every leading picture that was ``captured`` before ``capture_ns``; returns how many."""
        dropped = 0
        while self._entries and captured(self._entries[0]) < capture_ns:
            self.drop_oldest(cause)
            dropped += 1
        return dropped

    def set_mode(self, mode: StoreMode) -> None:
        """Keep pictures by another mode from now on."""
        self.mode = mode
        if mode == "freshest":
            while len(self._entries) > FRESHEST_PICTURES:
                self.drop_oldest("superseded")
        self._room.notify_all()

    def close(self, cause: str) -> None:
        """Drop everything with ``cause`` and let go a thread that waits for room."""
        self._closed, self._closed_by = True, cause
        while self._entries:
            self._forget(self._entries.popleft(), cause, back=True)
        self._reserve()
        self._hub.freed(0)
        self._room.notify_all()

    def _reserve(self) -> None:
        """The queue has changed: keep room for one picture in ``hub`` while it is empty."""
        wanted = 0 if self._entries or self._closed else self._picture_bytes
        self._hub.reserved += wanted - self._reserved
        self._reserved = wanted

    def _forget(self, entry: Entry, cause: str, *, back: bool = False) -> None:
        self._hub.freed(entry.nbytes)
        if entry.counted:
            self._account.drop(PLACE, cause)
            if not back:
                self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        if self.left is not None and entry.packet is not None:
            self.left(entry.packet)
