"""Credentials and TLS through comux from end to end, in every form in which they can be given; and that no secret is
ever shown."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from kafka_users import address_of, credentials
from service_fixtures import KafkaCluster, until

import comux
from comux import Comux
from comux.control import send_command
from comux.errors import ComuxError
from comux.lifecycle import write_pid_file
from comux.options import SourceOptions
from comux.transport import connect, parse_address

RAW = {"codec": "raw", "dtype": "u1", "shape": [4], "start": "beginning", "on_end": "wait"}
LOGINS = {
    "PLAIN": ("PLAIN", False),
    "SCRAM": ("SCRAM-SHA-256", False),
    "PLAIN over TLS": ("PLAIN", True),
    "SCRAM over TLS": ("SCRAM-SHA-256", True),
    "TLS": (None, True),
}


def login(kafka: KafkaCluster, name: str) -> tuple[str, dict[str, Any]]:
    """Address and client options."""
    mechanism, tls = LOGINS[name]
    if mechanism is None:
        return f"kafka://{kafka.ssl}", {"security_protocol": "SSL", "ssl_cafile": kafka.ca_file}
    return address_of(kafka, tls), credentials(kafka, "alice", mechanism, tls)


def by_options(address: str, options: dict[str, Any]) -> Comux:
    """As the first comux took them."""
    cameras = Comux(["a"], **RAW)
    cameras.setup_consumers(parse_address(address).namespace.split(","), replace=True, end=False, **options)
    cameras.setup_producer(parse_address(address).namespace.split(","), **options)
    return cameras


def by_address(address: str, options: dict[str, Any]) -> Comux:
    """Everything in one piece of text; results go where the packets are."""
    return Comux(["a"], address=f"{address}?{urlencode(options)}", **RAW)


def by_source(address: str, options: dict[str, Any]) -> Comux:
    """Each source its own; results go with them."""
    return Comux([SourceOptions(cam_id="a", address=address, client_options=options)], **RAW)


def by_packets(address: str, options: dict[str, Any]) -> Comux:
    """Said for the packets, and meant for the results that go to the same place."""
    cameras = Comux(["a"], **RAW)
    cameras.setup_consumers(address, **options)
    return cameras


FORMS = [
    *((name, by_options) for name in LOGINS),
    *(("SCRAM over TLS", f) for f in (by_address, by_source, by_packets)),
]


@pytest.mark.parametrize("name,form", FORMS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_packets_and_results(kafka: KafkaCluster, place: Any, name: str, form: Any) -> None:
    place.topic("raw_a")
    place.send("raw_a", b"1234")
    address, options = login(kafka, name)
    with form(address, {**options, "prefix": place.prefix}) as cameras:
        item = cameras.read("a", timeout=10)
        assert item.array.tolist() == [49, 50, 51, 52]
        cameras.send(item, {"mean": 50.5}).result(10)
    (result,) = _records(place, "stream_a")
    assert result.value == b"1234" and dict(result.headers)["mean"] == b"50.5"


def _records(place: Any, topic: str) -> list[Any]:
    with place.broker.consumer(topic, start="beginning", on_end="wait") as consumer:
        return list(consumer.poll(10, 100))


def test_the_certificate_of_a_client(kafka: KafkaCluster, tmp_path: Path) -> None:
    """A key that cannot be used is told before anything connects, and no password is asked for on the terminal."""
    key = tmp_path / "client.pem"
    key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    for options, says in {
        ("ssl_cafile", str(tmp_path / "none.pem")): "No such file",
        ("ssl_cafile", str(key)): "PEM",
        ("ssl_certfile", str(key)): "ssl_certfile",
    }.items():
        with pytest.raises(comux.errors.ConfigError, match=says):
            connect(f"kafka://{kafka.ssl}", security_protocol="SSL", **dict([options]))


# -- the command line ----------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "comux", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def told(kafka: KafkaCluster, place: Any, tmp_path: Path) -> dict[str, str]:
    """Addresses for the command line: with the password, with a file of it, and with a wrong one."""
    address, options = login(kafka, "SCRAM over TLS")
    file = tmp_path / "password"
    file.write_text(options.pop("sasl_plain_password") + "\n")
    options["prefix"] = place.prefix
    return {
        "password": f"{address}?{urlencode({**options, 'sasl_plain_password': kafka.users['alice']})}",
        "file": f"{address}?{urlencode({**options, 'password_file': str(file)})}",
        "wrong": f"{address}?{urlencode({**options, 'sasl_plain_password': WRONG})}",
    }


WRONG = "wr0ng-but-secret"
SENT = "sent-in-a-command"  # so it stands in a record, and kafka-python's debug log of records


def test_the_command_line(kafka: KafkaCluster, place: Any, told: dict[str, str]) -> None:
    said = []
    for which in ("password", "file"):
        done = command("publish", "synthetic://64x48@30", "-t", f"cam_{which}", "-a", told[which], "--frames", "5")
        assert done.returncode == 0, done.stderr
        assert "5 packets" in done.stdout
        said += [done.stdout, done.stderr]
    assert place.broker.topics() == ["cam_file", "cam_password"]
    done = command("topics", "list", "-a", told["file"])
    assert done.returncode == 0 and "cam_file" in done.stdout
    refused = command("--debug", "publish", "synthetic://64x48@30", "-t", "cam", "-a", told["wrong"], "--frames", "5")
    assert refused.returncode == 2 and "credentials of user 'alice' were refused" in refused.stderr
    said += [done.stdout, done.stderr, refused.stdout, refused.stderr]
    assert not any(secret in text for secret in (kafka.users["alice"], WRONG) for text in said)


# -- nothing is shown ----------------------------------------------------------------------------------------------


class Everything(logging.Handler):
    """What every logger of the process says, down to the smallest."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    handler, root = Everything(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(1)
    yield handler.lines
    root.setLevel(before)
    root.removeHandler(handler)


def whole(error: BaseException) -> list[str]:
    """An error, and all that stands behind it."""
    out: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        out += [str(seen), repr(seen), repr(seen.args)]
        seen = seen.__cause__ or seen.__context__
    return out


def test_no_secret_is_shown(kafka: KafkaCluster, place: Any, logged: list[str], tmp_path: Path) -> None:
    address, options = login(kafka, "PLAIN")
    secret = kafka.users["alice"]
    text = f"{address}?{urlencode({**options, 'prefix': place.prefix})}"
    shown: list[Any] = []
    for name in ("raw_a", "raw_b"):
        place.topic(name)
        place.send(name, b"1234")

    cameras = Comux(
        [SourceOptions(cam_id="a", address=text), "b"],
        **{**RAW, "client_options": {**options, "ssl_password": secret}},
    )
    cameras.setup_consumers(address, prefix=place.prefix, **options)
    cameras.setup_controller("config", text)
    cameras.events.listen(shown.append)
    with cameras:
        shown.append(write_pid_file(tmp_path / "pid").read_text())
        for cam_id in ("a", "b"):
            cameras.send(cameras.read(cam_id, timeout=10), {"x": 1}).result(10)
        for action, value in {
            "create": {"cam_id": "c", "address": f"{address}?sasl_plain_password={SENT}"},
            "update": {"cam_id": "a", "maxlen": 10},
            "status": {},
        }.items():
            shown.append(send_command(place.broker, "config", action, value, timeout=10))
        shown.append(cameras.create("d", consume_topic="raw_b", address=text, client_options=options))
        shown.append(cameras.update("d", client_options={**options, "acks": 1}))
        place.broker.delete_topic("raw_a", force=True)
        until(lambda: cameras.status()["sources"]["a"]["state"] != "RUNNING", "a misses its topic")
        shown += [cameras.status(), cameras, cameras._core.settings.produce_options, *cameras.events.recent()]
    with connect(text) as broker:
        shown += [broker, broker.address, broker._cluster.options, parse_address(text)]
    shown += _mistakes(kafka, address, text, options)
    spec = SourceOptions(cam_id="a", address=text, produce_address=text, client_options=options)
    shown += [spec, str(spec), spec.shown()]
    assert SourceOptions(**spec.spec()) == spec  # what is for programs is whole

    told = [*map(repr, shown), *map(str, shown)]
    leaks = [line for line in [*logged, *told] if secret in line or WRONG in line]
    assert not leaks, "\n".join(leak[:300] for leak in leaks)
    assert [line for line in told if SENT in line] == []
    answers = [thing for thing in shown if isinstance(thing, dict) and "responder" in thing]
    assert [answer["ok"] for answer in answers] == [False, True, True]
    assert any("SaslAuthenticateRequest" in line for line in logged)  # it went through, and past the filter
    assert sum("***" in str(thing) for thing in shown) > 5


def _mistakes(kafka: KafkaCluster, address: str, text: str, options: dict[str, Any]) -> list[str]:
    """Errors that are made of what was given, the password among it."""
    host = kafka.sasl
    secret = options["sasl_plain_password"]
    wrong = {**options, "sasl_plain_password": WRONG}
    attempts: list[Any] = [
        lambda: connect(address, **wrong),
        lambda: connect(address, **options, sasl_plain_pasword=secret),
        lambda: connect(f"{text}&sasl_plain_pasword={secret}"),
        lambda: connect(address, **{**options, "sasl_plain_password": [secret]}),
        lambda: connect(f"kafka://alice:{secret}@{host}"),
        lambda: connect(f"alice:{secret}@{host}"),
        lambda: connect(f"{text}&x"),
        lambda: connect({"address": text}),
        lambda: connect(address, bootstrap_servers={"sasl_plain_password": secret}),
        lambda: connect(address, topic_config=[secret], **options),
        lambda: connect(f"pigeon://x?password={secret}"),
        lambda: Comux(["a"], {"sasl_plain_password": secret}),
        lambda: Comux(["a"], address=f"kafka://alice:{secret}@{host}", **RAW).start(),
        lambda: Comux(["a"], address={"sasl_plain_password": secret}),
        lambda: SourceOptions(client_options=options),
        lambda: SourceOptions(cam_id="a", client_options=[("sasl_plain_password", secret)]),
        lambda: SourceOptions(cam_id="a", address=[text]),
        lambda: SourceOptions(cam_id="a", produce_address={"sasl_plain_password": secret}),
        lambda: SourceOptions(cam_id="a", address=text, W="x"),
    ]
    out: list[str] = []
    for attempt in attempts:
        with pytest.raises((ComuxError, TypeError)) as caught:
            attempt()
        out += whole(caught.value)
    return out


def test_a_password_goes_nowhere_else(kafka: KafkaCluster, place: Any) -> None:
    """A command may name another cluster of the engine, and options neither there nor in its own words."""
    place.topic("raw_a")
    options = credentials(kafka, "alice")
    cameras = Comux(["a"], **RAW)
    cameras.setup_consumers(kafka.sasl, prefix=place.prefix, **options)
    with cameras:
        with pytest.raises(comux.errors.ConfigError, match="needs sasl_plain_password"):
            cameras.create("b", address="kafka://elsewhere.invalid:9092")
        assert "b" not in cameras.status()["sources"]
        assert cameras._core.resolve(SourceOptions(cam_id="c", address="memory://x")).client_options == {}
