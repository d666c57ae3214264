"""What is shown of addresses and options that hold secrets."""

from __future__ import annotations

import pytest

from comux.options import SourceOptions
from comux.redaction import is_secret, redacted, shown


@pytest.mark.parametrize(
    "text,says",
    [
        (
            "kafka://h:1,h2:2/t?acks=1&sasl_plain_password=p@w&x=1",
            "kafka://h:1,h2:2/t?acks=1&sasl_plain_password=***&x=1",
        ),
        ("kafka://h:1?sasl%5Fplain%5Fpassword=p", "kafka://h:1?sasl%5Fplain%5Fpassword=***"),
        ("kafka://h:1?sasl_plain_pasword=p&SSL_PASSWORD=p", "kafka://h:1?sasl_plain_pasword=***&SSL_PASSWORD=***"),
        ("kafka://h:1?proxy_url=http://u:p@proxy", "kafka://h:1?proxy_url=***"),
        ("kafka://u:p@h:1", "kafka://***@h:1"),
        ("kafka://u:p/w@h:1/t", "kafka://***@h:1/t"),
        ("kafka://u:p?w@h:1", "kafka://***@h:1"),
        ("u:p@h:1,u:p@h:2", "***@h:1,***@h:2"),
        ("rtsp://u:p@camera/1", "rtsp://***@camera/1"),
        ("synthetic://640x360@30?gop=30", "synthetic://640x360@30?gop=30"),
        ("h:1,h:2", "h:1,h:2"),
        ("shm://lab?broken", "shm://lab?broken"),
        ("", ""),
    ],
)
def test_addresses(text: str, says: str) -> None:
    assert shown(text) == says


def test_options() -> None:
    given = {
        "sasl_plain_password": "p",
        "ssl_password": None,
        "inner": {"token": 5},
        "proxy": "http://u:p@h",
        "acks": 1,
    }
    assert redacted(given) == {
        "sasl_plain_password": "***",
        "ssl_password": None,
        "inner": {"token": "***"},
        "proxy": "http://***@h",
        "acks": 1,
    }


@pytest.mark.parametrize("name", ["ssl_keyfile", "sasl_plain_username", "key_serializer", "compression_type", "path"])
def test_what_is_no_secret(name: str) -> None:
    assert not is_secret(name)


def test_sources_show_none_and_keep_all() -> None:
    options = SourceOptions(
        cam_id="a", address="kafka://h:1?sasl_plain_password=p123", client_options={"ssl_password": "p123", "acks": 1}
    )
    assert "p123" not in repr(options) + str(options) + repr(options.shown())
    assert options.shown()["client_options"] == {"ssl_password": "***", "acks": 1}
    assert SourceOptions(**options.spec()) == options
