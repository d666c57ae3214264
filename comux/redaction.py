"""What must not be shown: values of secret options, wherever text for people is made of them.

Lives here: the one rule of which names are secrets, and what stands in the place of their values. May import: nothing
of comux. Must never know: which options an engine has.

Names are judged generously (a misspelt ``sasl_plain_pasword`` is one too): hiding a value that is none costs little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_plus

HIDDEN: Final = "***"
_SECRET: Final = re.compile(r"pas+w|pass|pwd|secret|token|cred|jaas|(?:private|access|api|shared)_?key", re.IGNORECASE)
_SCHEME: Final = r"((?:^|,)(?:[a-z][a-z0-9+]*://)?+)"
_USER_INFO: Final = re.compile(_SCHEME + r"[^/@,\s]*:[^@]*@")
_USER_INFO_ANYWHERE: Final = re.compile(_SCHEME + r"[^/@,\s?]*:[^@=]*@")  # with a ? in the password


def is_secret(name: str) -> bool:
    """Whether an option of this name has a value that must not be shown."""
    return _SECRET.search(name) is not None


def redacted(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with ``***`` for the values of secrets, at any depth: fit to be shown."""
    return {name: _shown(name, value) for name, value in options.items()}


def _shown(name: Any, value: Any) -> Any:
    if is_secret(str(name)) and value is not None:
        return HIDDEN
    if isinstance(value, Mapping):
        return redacted(value)
    return shown(value) if isinstance(value, str) else value


def shown(text: str) -> str:
    """An address, fit to be shown: ``***`` for ``user:password@`` and for the values of secrets among its options."""
    address, mark, query = text.partition("?")
    if "@" in text:
        address, mark, query = _USER_INFO_ANYWHERE.sub(rf"\1{HIDDEN}@", text).partition("?")
        address = _USER_INFO.sub(rf"\1{HIDDEN}@", address)
    return address + mark + "&".join(map(_pair, query.split("&")))


def _pair(text: str) -> str:
    """One option; what holds an ``@`` may be a part of ``user:password@``, wherever that was put."""
    name, mark, value = text.partition("=")
    if "@" in unquote_plus(value if mark else name):
        return f"{name}={HIDDEN}" if mark else HIDDEN
    return f"{name}={HIDDEN}" if mark and is_secret(unquote_plus(name)) else text
