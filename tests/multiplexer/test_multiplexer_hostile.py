"""Random and hostile commands, ten thousand of them in ``make torture``: nothing changes but by a command that was
answered with success, and the loop over the other sources gets every frame."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from comux import Comux
from comux.control import CommandLimits
from comux.control.replies import reply_spec
from comux.transport import Broker

GUARDED = ("gate", "yard")
IDS = ["x1", "x2", 3, "3", "é", "a b", "../x", "x" * 300, "", None, True, 1.5, [], {}]
COMMANDS = 100  # of an example

_places = st.sampled_from(
    ["file:///etc/passwd", "kafka://127.0.0.1:1", "shm://elsewhere", "memory://?a=b", "http://x", "", 7, None]
)
_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_settings = st.fixed_dictionaries(
    {"cam_id": st.sampled_from(IDS)},
    optional={
        "rate": st.sampled_from([1, 0.5, 0, -1, "1", 1e308]) | _junk,
        "consume_topic": st.sampled_from(["raw_gate", "raw_x1", "config", "config_replies", "../../etc", "a\n"])
        | _junk,
        "address": _places,
        "produce_address": _places,
        "client_options": _junk,
        "codec": st.sampled_from(["h264", "nope", "../../lib.so"]) | _junk,
        "W": st.sampled_from([16, -1, 10**12]) | _junk,
        "start": st.sampled_from(["end", "beginning", "__import__('os')"]) | _junk,
        "to": st.sampled_from(["end", -1, 10**30]) | _junk,
        "__class__": _junk,
        "extra": _junk,
    },
)
_text = st.one_of(
    _settings.map(lambda value: json.dumps(value).encode()),
    _junk.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
    st.sampled_from(
        [b"x1", b"[" * 5000, b"9" * 6000, b"\x80" * 100, b'{"cam_id":', b"!!python/object:os.system", b"NaN"]
    ),
)
_keys = st.sampled_from(
    [b"create", b"update", b"delete", b"seek", b"set_rate", b"status", b"acts", b"__init__", b"close", b"_core", b""]
) | st.binary(max_size=12)
_headers = st.lists(
    st.tuples(
        st.sampled_from(["request-id", "reply-to", "target", "expires", "x"]),
        st.none() | st.sampled_from([b"config", b"config_replies", b"raw_gate", b"1", b"1e9", b"\xff", b"r1"])
        | st.binary(max_size=20),
    ),
    max_size=3,
)  # fmt: skip


class Loop:
    """The user's loop: takes every frame of the guarded sources."""

    def __init__(self, mux: Comux) -> None:
        self.seen: dict[Any, list[int]] = {cam: [] for cam in GUARDED}
        self._mux = mux
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for cam_id, index, _ in self._mux.get_batch(timeout=0.05):
                if index is not None and cam_id in self.seen:
                    self.seen[cam_id].append(index)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def loop(address: str, broker: Broker, feed: Any, fake: Any, wait_for: Any) -> Iterator[tuple[Comux, Loop, list[Any]]]:
    feeds = [feed(cam) for cam in GUARDED]
    mux = Comux(GUARDED, address=address, decoder_factory=fake, mode="every_frame", strict_on_fail=False)
    limits = CommandLimits(per_second=1e9, bytes_per_second=1e15)
    mux.setup_controller("config", limits=limits, command_filter=lambda command: command.request_id != "filtered")
    mux.start()
    running = Loop(mux)
    yield mux, running, feeds
    running.stop()
    mux.close()
    for account in mux.accounts().values():
        assert account.balanced and account.held_total == 0


def replay(answers: list[dict[str, Any]], sources: dict[str, Any]) -> None:
    """What the commands that were answered with success make of the table."""
    for answer in answers:
        if not answer["ok"] or answer.get("repeated") or answer["action"] not in ("create", "update", "delete"):
            continue
        told = answer["result"]
        assert told["success"]
        if answer["action"] == "delete":
            sources.pop(told["msg"].split("'")[1] if "'" in told["msg"] else told["msg"].split()[1])
        else:
            sources[str(told["source"]["cam_id"])] = told["source"]


@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.torture)])
def test_only_what_was_answered_with_success_has_changed_anything(
    loop: tuple[Comux, Loop, list[Any]], broker: Broker, wait_for: Any, examples: int
) -> None:
    mux, running, feeds = loop
    controller = mux._controller
    assert controller is not None
    expected = {cam: mux._core.resolve(mux._core.specs[cam]).shown() for cam in GUARDED}
    topics = set(broker.topics())
    sent, outcomes = Counter[str](), Counter[str]()
    began = time.monotonic()

    broker.create_topic(reply_spec("config_replies"), exist_ok=True)
    producer, replies = broker.producer("config"), broker.consumer("config_replies", start="end", on_end="wait")
    with producer, replies:

        @given(st.lists(st.tuples(_keys, st.none() | _text, _headers), min_size=COMMANDS, max_size=COMMANDS))
        @settings(
            max_examples=examples,
            deadline=None,
            phases=[Phase.generate],  # the same manager takes all of them: nothing could be repeated, or made smaller
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        def flood(commands: list[tuple[bytes, bytes | None, list[tuple[str, bytes | None]]]]) -> None:
            for each in feeds:
                each.send(3)
            for key, value, headers in commands:
                producer.send(value, key=key, headers=headers)
            sent["commands"] += len(commands)
            books = wait_for(
                lambda: (b := controller.account()).received >= sent["commands"] and not b.held_total and b, 60
            )
            assert books.received == sent["commands"] == books.delivered + books.dropped_total
            answered = sent["commands"] - books.dropped.get("ignored", 0)
            wait_for(lambda: controller.status()["answers"] == {"sent": answered, "failed": 0}, 30, "every answer")
            answers = [json.loads(record.value) for record in replies.poll(0, 1000)]
            outcomes.update("ok" if answer["ok"] else answer["error"]["type"] for answer in answers)
            replay(answers, expected)
            assert {key: mux._core.resolve(spec).shown() for key, spec in mux._core.specs.items()} == expected
            assert set(GUARDED) <= expected.keys()
            assert controller.running
            for extra in [key for key in expected if key not in GUARDED]:  # keep it small
                mux.delete(extra)
                del expected[extra]

        flood()

    assert sent["commands"] >= examples * COMMANDS
    frames = feeds[0].sent
    wait_for(lambda: all(len(running.seen[cam]) == frames for cam in GUARDED), 30, "every frame")
    assert running.seen == {cam: list(range(frames)) for cam in GUARDED}
    made = set(broker.topics()) - topics
    assert all(name.startswith(("config_replies", "stream_")) for name in made), made
    assert outcomes["ok"] and outcomes["CommandError"] and outcomes["UnknownActionError"]
    seconds = time.monotonic() - began
    print(f"{sent['commands']} commands in {seconds:.1f} s beside {2 * frames} frames: {dict(outcomes)}")


def test_a_flood_is_answered_and_not_read(address: str, feed: Any, fake: Any, broker: Broker, wait_for: Any) -> None:
    feed("gate")
    with Comux(["gate"], address=address, decoder_factory=fake) as mux:
        mux.setup_controller("config", limits=CommandLimits(per_second=20))
        controller = mux._controller
        assert controller is not None
        broker.create_topic(reply_spec("config_replies"), exist_ok=True)
        producer, replies = broker.producer("config"), broker.consumer("config_replies", start="end", on_end="wait")
        with producer, replies:
            for _ in range(200):
                producer.send(b"null", key=b"status")
            books = wait_for(lambda: (b := controller.account()).received == 200 and not b.held_total and b)
            assert books.dropped["busy"] >= 100 and books.delivered >= 20
            wait_for(lambda: controller.status()["answers"]["sent"] == 200)
            answers = [json.loads(record.value) for record in replies.poll(1, 1000)]
            refused = [answer for answer in answers if not answer["ok"]]
            assert len(answers) == 200 and len(refused) == books.dropped["busy"]
            assert refused[0]["error"]["retriable"] and "more than 20 commands" in refused[0]["error"]["message"]


def test_a_command_that_comes_again_is_answered_and_not_carried_out(
    address: str, feed: Any, fake: Any, broker: Broker, wait_for: Any
) -> None:
    feed("gate")
    feed("x1")
    with Comux(["gate"], address=address, decoder_factory=fake) as mux:
        mux.setup_controller("config")
        controller = mux._controller
        assert controller is not None
        broker.create_topic(reply_spec("config_replies"), exist_ok=True)
        producer, replies = broker.producer("config"), broker.consumer("config_replies", start="end", on_end="wait")
        with producer, replies:
            for key, value in ((b"create", b'"x1"'), (b"create", b'"x1"'), (b"delete", b'"x1"')):
                producer.send(value, key=key, headers=[("request-id", b"r1")])
            producer.send(b'"x1"', key=b"create", headers=[("request-id", b"r2")])
            wait_for(lambda: controller.status()["answers"]["sent"] == 4)
            first, again, other, new = (json.loads(record.value) for record in replies.poll(5, 100))
    assert first["ok"] and again["ok"] and again["repeated"] and again["result"] == first["result"]
    assert not other["ok"] and "was used by another command at offset 0" in other["error"]["message"]
    assert not new["ok"] and "exists" in new["error"]["message"]
    assert controller.account().dropped == {"repeated": 2}
    assert "x1" in mux._core.specs
