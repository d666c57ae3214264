"""``TransportContract``: what every engine promises, T1 to T10 of ``comux.transport.interface``."""

from __future__ import annotations

from .transport_life import LifeContract
from .transport_reading import ReadingContract
from .transport_records import RecordsContract
from .transport_sharing import SharingContract


class TransportContract(RecordsContract, SharingContract, ReadingContract, LifeContract):
    """Subclass it in a test module as ``class TestMyEngine(TransportContract)`` and define ``make_broker``.

    Tests that need an optional capability prove, where the engine lacks it, that asking for it raises
    ``UnsupportedError`` with the capability's name.
    """
