"""Every error comux raises, sorted by what the caller can do about it.

Lives here: the one base class and its children. May import: nothing of comux. Must never know: any engine or codec.

Messages are one line and say what happened, where (source, topic, offset), the numbers, and what to do next.
Errors of third-party libraries (kafka, av) never leave the room that owns the library; they are translated to these.
"""

from __future__ import annotations


class ComuxError(Exception):
    """Base of everything comux raises.

    Attributes:
        retriable: ``True`` where the same call may succeed later without anything being changed.
    """

    retriable: bool = False


# -- the caller's input -------------------------------------------------------------------------------------------


class ConfigError(ComuxError, ValueError):
    """A setting, name, address or file is wrong. Raised before anything starts; correct the value it names."""


class UnknownAddressError(ConfigError):
    """No engine or feed understands this address."""


class UnsupportedError(ComuxError):
    """The engine declares that it does not have this capability (see ``Broker.capabilities``)."""


class UnknownSourceError(ComuxError, KeyError):
    """No source with this ``cam_id``."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotRetainedError(ComuxError, LookupError):
    """``send`` was asked for a packet that is no longer held; the message says how far back packets reach."""


class UnknownActionError(ComuxError, LookupError):
    """A control command names an action nobody defined."""


class HeaderError(ComuxError, ValueError, TypeError):
    """A result cannot be sent as a header, or headers cannot be decoded; the message names the header."""


class CommandError(ComuxError, ValueError):
    """A control command is malformed, expired or not allowed; it changed nothing."""


# -- topics --------------------------------------------------------------------------------------------------------


class TopicError(ComuxError):
    """Base of what can go wrong with one topic."""


class UnknownTopicError(TopicError, LookupError):
    """The topic does not exist on this engine. Create it, or start what publishes it."""

    retriable = True


class TopicExistsError(TopicError, FileExistsError):
    """The topic exists already, with another configuration."""


class TopicBusyError(TopicError):
    """Somebody alive uses the topic in a way that excludes this call (one writer, removal)."""

    retriable = True


class TopicCorruptError(TopicError):
    """What is stored contradicts itself: a segment's metadata (nothing was read from it), or records on Kafka."""


class LayoutMismatchError(TopicError):
    """The segment was made by another layout version, byte order or owner; the message names both and the remedy."""


class NoSpaceError(TopicError, OSError):
    """Shared memory is too small; the message says what is needed, what is free and how to get more."""


class RecordTooLargeError(TopicError, ValueError):
    """A record is larger than the limit the message names."""


class StaleLeaseError(TopicError):
    """The record is no longer held by this handle: it was acknowledged, given back or redelivered to another member."""


class EndOfStream(TopicError):
    """The stream ended and everything before its end was read. Iteration stops on it."""


class ClosedError(ComuxError):
    """The handle was closed, or inherited through a fork; open a new one."""


class WaitTimeoutError(ComuxError, TimeoutError):
    """A deadline passed before the call could do its work; nothing was changed."""

    retriable = True


class ConnectError(ComuxError, ConnectionError):
    """The engine cannot be reached: nobody listens there, or nobody answers."""

    retriable = True


class TlsError(ConnectError):
    """Somebody listens, but no secure connection came about: certificates, host name, or one side speaks no TLS."""

    retriable = False


class AuthenticationError(ConnectError):
    """The cluster refused the credentials, or wants some and was given none."""

    retriable = False


class BrokerTooOldError(ConnectError):
    """The cluster answers, but is older than what comux needs."""

    retriable = False


class NotAuthorizedError(ComuxError, PermissionError):
    """The cluster knows who asks and does not allow it; the message says which right on what is missing."""


class DeliveryError(ComuxError):
    """A record handed to ``send`` earlier was not delivered. ``failures`` lists ``((cam_id, index), error)``."""

    def __init__(self, message: str, failures: tuple[tuple[object, BaseException], ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures


# -- decoding ------------------------------------------------------------------------------------------------------


class DecodeError(ComuxError):
    """A packet cannot become a picture. Stays inside its source: counted, never raised to the loop."""


class DecoderLostError(ComuxError):
    """The process that decoded for a source ended, or does not answer. Stays inside its source, which asks for another
    one; what was in the decoder is counted as dropped."""

    retriable = True


class DeviceError(ConfigError):
    """The device that shall decode is not there, cannot be opened, or does not decode this codec."""


class UnknownCodecError(ConfigError):
    """No decoder is registered under this name; the message lists those that are."""


class PictureTooLargeError(DecodeError):
    """A stream announces a picture of more than ``max_pixels``; refused before decoding."""
