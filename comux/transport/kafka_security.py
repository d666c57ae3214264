"""Credentials and TLS of a Kafka connection: what can be known to be wrong before anything is sent, and a look at a
listener that hung up.

**Problem.** kafka-python looks at certificates and credentials when it connects, on its I/O thread, again and again: a
file that is not there reads like a network that is down, an encrypted key asks for its password on the terminal, a
missing password is a ``TypeError``. And a listener that is spoken to in the wrong way hangs up without a word.

Here: ``check_security`` tries everything that needs no network when the options are read; ``speaks_tls`` asks a
listener that hung up the one question that tells its kind.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kafka.net.sasl import SASL_MECHANISMS

from comux.errors import ConfigError

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_WITH_PASSWORD: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_FILES: Final = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
_LOOK: Final = 2.0  # seconds


def uses_sasl(client: Mapping[str, Any]) -> bool:
    """Whether these options make a client give credentials."""
    return str(client.get("security_protocol", "PLAINTEXT")).startswith("SASL_")


def uses_tls(client: Mapping[str, Any]) -> bool:
    """Whether these options make a client speak TLS."""
    return str(client.get("security_protocol", "PLAINTEXT")).endswith("SSL")


def read_password(path: Any) -> str:
    """The password in a file, without the end of its line.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        password = Path(path).read_text().rstrip("\r\n")
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"Kafka option password_file: {str(path)!r} cannot be read: {_reason(error)}") from None
    if not password:
        raise ConfigError(f"Kafka option password_file: {str(path)!r} is empty; write the password into it")
    return password


def check_security(client: Mapping[str, Any]) -> None:
    """Hold options of credentials and TLS against each other, and read the files they name.

    Raises:
        ConfigError: something is missing or cannot be used; names the option.
    """
    if uses_sasl(client):
        _check_sasl(client)
    if uses_tls(client):
        _check_tls(client)


def _check_sasl(client: Mapping[str, Any]) -> None:
    protocol, mechanism = client["security_protocol"], client.get("sasl_mechanism")
    if mechanism is None:
        raise ConfigError(
            f"Kafka option security_protocol={protocol!r} needs sasl_mechanism, one of "
            f"{', '.join(sorted(SASL_MECHANISMS))}"
        )
    if mechanism in _WITH_PASSWORD:
        for name in ("sasl_plain_username", "sasl_plain_password"):
            if not client.get(name):
                raise ConfigError(f"Kafka option sasl_mechanism={mechanism!r} needs {name}, which is missing or empty")


def _check_tls(client: Mapping[str, Any]) -> None:
    for name in _FILES:
        path = client.get(name)
        if path is not None:
            try:
                Path(path).read_bytes()
            except OSError as error:
                raise ConfigError(f"Kafka option {name}={str(path)!r} cannot be read: {_reason(error)}") from None
    if client.get("ssl_context") is not None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("ssl_cafile", "ssl_crlfile"):
        if client.get(name):
            try:
                context.load_verify_locations(client[name])
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    f"Kafka option {name}={str(client[name])!r} holds no certificates in PEM form: {_reason(error)}"
                ) from None
    if client.get("ssl_certfile"):
        _check_pair(context, client)


def _check_pair(context: ssl.SSLContext, client: Mapping[str, Any]) -> None:
    certificate, key, password = client["ssl_certfile"], client.get("ssl_keyfile"), client.get("ssl_password")
    try:
        context.load_cert_chain(certificate, key, password if password is not None else "")  # None asks the terminal
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"Kafka options ssl_certfile={str(certificate)!r}, ssl_keyfile={str(key)!r} are no certificate with its "
            f"key in PEM form, or ssl_password does not open the key: {_reason(error)}"
        ) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not readable").replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return type(error).__name__


def speaks_tls(host: str, port: int) -> bool:
    """Whether a listener answers the beginning of a TLS connection with TLS. Waits 2 s at most; sends nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is said over this connection: it only tells the listener's kind
    try:
        with socket.create_connection((host, port), _LOOK) as plain, context.wrap_socket(plain, server_hostname=host):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it refuses us, in TLS
    except (OSError, ValueError):
        return False
