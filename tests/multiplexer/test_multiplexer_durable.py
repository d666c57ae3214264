"""A manager with durable control, life after life: the same sources, whatever is missing meanwhile."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comux import Comux
from comux.control import Registry, send_command, state_topic_of
from comux.errors import ConfigError, TopicBusyError
from comux.options import SourceOptions
from comux.transport import Broker

LONG = 30.0


@pytest.fixture
def live(address: str, fake: Any) -> Iterator[Callable[..., Comux]]:
    """``live(ids, **options)``: a manager that is not started, with durable control; ends with the test."""
    opened: list[Comux] = []

    def new(ids: Any, **options: Any) -> Comux:
        for mux in opened:
            mux.close()
        words = {"control_topic": "config", "durable_control": True, "decoder_factory": fake, **options}
        opened.append(Comux(ids, address=address, **words))
        return opened[-1]

    yield new
    for mux in opened:
        mux.close()
        for cam_id, account in mux.accounts().items():
            assert account.balanced and account.held_total == 0, (cam_id, account)


def stated(mux: Comux) -> dict[str, dict[str, Any]]:
    """What is said of each source now, in the order of the batch."""
    return {key: {k: v for k, v in spec.spec().items() if k != "cam_id"} for key, spec in mux._core.specs.items()}


def told(mux: Comux, kind: str) -> dict[str | None, str]:
    return {event.source: event.message for event in mux.events.recent(kind)}


def command(broker: Broker, action: str, value: Any = None) -> dict[str, Any]:
    answer = send_command(broker, "config", action, value, timeout=LONG)
    assert answer["ok"], answer
    return answer


def test_the_next_life_has_the_same_sources_with_the_same_settings(
    live: Callable[..., Comux], broker: Broker, feed: Any, wait_for: Any
) -> None:
    feeds = {cam: feed(cam) for cam in ("a", "b", "c", "d")}
    first = live(["a", "b", {"cam_id": "c", "rate": 9.0}])
    first.start()
    command(broker, "create", {"cam_id": "d", "maxlen": 7})
    command(broker, "update", {"cam_id": "c", "rate": None})
    command(broker, "set_rate", {"cam_id": "d", "rate": 4})
    command(broker, "delete", "b")
    command(broker, "pause", "a")
    first.seek("c", "end")
    first.update("a", maxlen=5)  # the program's own doing: it would do it again
    assert first.status()["control"]["durable"]["changes"] == 4
    second = live(["a", "b", {"cam_id": "c", "rate": 9.0}])
    assert stated(second) == {"a": {"paused": True}, "c": {}, "d": {"maxlen": 7, "rate": 4.0}}
    assert second.cam_ids == ("a", "c", "d"), "before the start"
    second.start()
    wait_for(lambda: second.status()["sources"]["a"]["state"] == "PAUSED")
    feeds["d"].send()
    assert second.read("d", timeout=LONG).index == 0
    command(broker, "resume")
    third = live(["a", "b", {"cam_id": "c", "rate": 9.0}])
    assert stated(third) == {"a": {}, "c": {}, "d": {"maxlen": 7, "rate": 4.0}}


def test_a_topic_that_is_missing_for_a_restored_source_is_waited_for(
    live: Callable[..., Comux], broker: Broker, feed: Any, wait_for: Any
) -> None:
    """Also where the program is strict about its own sources, and about where results go."""
    for cam in ("a", "late"):
        feed(cam)
    live(["a"]).start()
    command(broker, "create", {"cam_id": "late"})
    broker.delete_topic("raw_late", force=True)
    second = live(["a"])
    second.setup_consumers()  # connects all that are there
    second.setup_producer()
    second.start()
    assert second.cam_ids == ("a", "late")
    wait_for(lambda: second.status()["sources"]["late"]["state"] == "RECONNECTING")
    feed("late").send(5)
    assert wait_for(lambda: second.read("late", timeout=1), LONG)


def test_a_source_whose_topic_carries_something_else_now_holds_up_no_other(
    live: Callable[..., Comux], broker: Broker, feed: Any
) -> None:
    camera = feed("a")
    feed("mine")
    feed("other")
    live(["a", "mine"]).start()
    command(broker, "create", {"cam_id": "other"})
    command(broker, "update", {"cam_id": "mine", "consume_topic": "raw_other"})
    broker.delete_topic("raw_other", force=True)
    feed("other", metadata={"codec": "hevc"})
    second = live(["a", "mine"], codec="h264")
    assert set(told(second, "control.unrestored")) == {"other"}
    assert "carries hevc, not h264" in told(second, "control.unrestored")["other"]
    second.start()
    camera.send()
    assert second.read("a", timeout=LONG).index == 0
    assert second.cam_ids == ("a", "mine")


def test_a_program_whose_sources_were_all_deleted_starts_with_none(
    live: Callable[..., Comux], broker: Broker, feed: Any
) -> None:
    feed("a")
    live(["a"]).start()
    command(broker, "delete", "a")
    second = live(["a"])
    second.start()
    assert second.cam_ids == ()
    command(broker, "create", "a")
    assert live(["a"]).cam_ids == ("a",)


def test_what_the_program_states_itself_counts(live: Callable[..., Comux], broker: Broker, feed: Any) -> None:
    for cam in ("a", "b"):
        feed(cam)
    live(["a"]).start()
    command(broker, "create", {"cam_id": "b", "rate": 5})
    second = live(["a", {"cam_id": "b", "rate": 3.0}])
    assert "states that source itself" in told(second, "control.unrestored")["b"]
    assert stated(second) == {"a": {}, "b": {"rate": 3.0}}
    second.start()
    command(broker, "update", {"cam_id": "b", "W": 64})
    third = live(["a", {"cam_id": "b", "rate": 3.0}])
    assert not told(third, "control.unrestored"), "told once"
    assert stated(third)["b"] == {"rate": 3.0, "W": 64}
    third.start()
    command(broker, "delete", "b")
    assert live(["a"]).cam_ids == ("a",), "it is not even stated any more"


def test_settings_that_there_are_no_more_are_told_of(
    live: Callable[..., Comux], broker: Broker, feed: Any, fake: Any
) -> None:
    feed("a")
    feed("b")
    live(["a"]).start()
    command(broker, "create", {"cam_id": "b", "codec": "vp9"})
    command(broker, "update", {"cam_id": "a", "rate": 5})

    def without_vp9(options: Any) -> Any:
        if options.codec == "vp9":
            raise ConfigError("codec 'vp9' is not installed")
        return fake(options)

    second = live(["a"], decoder_factory=without_vp9)
    assert "not installed" in told(second, "control.unrestored")["b"]
    assert stated(second) == {"a": {"rate": 5.0}}
    second.start()
    assert stated(live(["a"])) == {"a": {"rate": 5.0}, "b": {"codec": "vp9"}}, "it is still wanted"


def test_setting_up_after_the_start_restores_at_once(live: Callable[..., Comux], broker: Broker, feed: Any) -> None:
    for cam in ("a", "b"):
        feed(cam)
    live(["a"]).start()
    command(broker, "create", "b")
    second = live(["a"], control_topic=None, durable_control=False)
    second.start()
    second.setup_controller("config", durable=True)
    assert set(second.status()["sources"]) == {"a", "b"}


def test_what_was_stated_anew_meanwhile_is_newer_than_an_earlier_command(
    live: Callable[..., Comux], broker: Broker, feed: Any
) -> None:
    feed("a")
    secret = "memory://x?sasl_plain_password=secret"
    live([{"cam_id": "a", "rate": 9.0, "maxlen": 30, "produce_address": secret}]).start()
    command(broker, "update", {"cam_id": "a", "rate": 5, "maxlen": 7, "W": 64, "produce_address": "memory://y"})
    with broker.consumer(state_topic_of("config", "comux"), start="beginning", on_end="wait") as reader:
        records = [bytes(record.value) for record in reader.poll(0, 16)]
    assert b'"was"' in records[-1] and not any(b"=secret" in record for record in records)
    edited = {"cam_id": "a", "rate": 10.0, "maxlen": 30}
    second = live([edited])
    assert stated(second) == {"a": {"rate": 10.0, "maxlen": 7, "W": 64}}
    assert "states rate, produce_address anew" in told(second, "control.unrestored")["a"]
    second.start()
    third = live([edited])
    assert stated(third) == {"a": {"rate": 10.0, "maxlen": 7, "W": 64}}
    assert not told(third, "control.unrestored")


class _Stated(Registry):
    """A registry told by a test what to state."""

    def __init__(self, *now: Any) -> None:
        self._now = now
        self._told: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def fetch(self) -> tuple[SourceOptions, ...]:
        return tuple(SourceOptions(**entry) for entry in self._now)

    def state(self, *now: Any) -> None:
        self._now = now
        self._told.put(True)

    def wait_for_change(self, timeout: float | None = None) -> bool:
        try:
            return self._told.get(timeout=timeout)
        except queue.Empty:
            return False

    def close(self) -> None:
        super().close()
        self._told.put(False)


def test_a_registrys_newer_word_replaces_an_earlier_commands(
    live: Callable[..., Comux], broker: Broker, feed: Any, wait_for: Any
) -> None:
    for cam in ("a", "b", "c"):
        feed(cam)
    registry = _Stated({"cam_id": "a", "rate": 9.0}, {"cam_id": "b"})
    first = live(registry, watch_registry=True)
    first.start()
    command(broker, "update", {"cam_id": "a", "rate": 5, "maxlen": 7})
    command(broker, "update", {"cam_id": "b", "rate": 2})
    command(broker, "create", {"cam_id": "c"})
    registry.state({"cam_id": "a", "rate": 8.0})
    wait_for(lambda: stated(first) == {"a": {"rate": 8.0, "maxlen": 7}, "c": {}}, LONG)
    now = {"cam_id": "a", "rate": 8.0}
    assert stated(live(_Stated(now))) == {"a": {"rate": 8.0, "maxlen": 7}, "c": {}}
    assert stated(live(_Stated(now, {"cam_id": "b"})))["b"] == {}, "it came again"


def test_a_cameras_file_says_it_and_its_newer_word_counts(
    address: str, broker: Broker, feed: Any, tmp_path: Path
) -> None:
    for cam in ("a", "b"):
        feed(cam)
    file = tmp_path / "cameras.yaml"
    head = f"address: {address}\ncontrol_topic: config\ndurable_control: true\ncameras:\n"
    file.write_text(head + "  - {cam_id: a, rate: 9}\n")
    with Comux(file, codec="raw") as first:
        assert first.controller is not None and first.controller.durable
        command(broker, "update", {"cam_id": "a", "rate": 5, "maxlen": 7})
        command(broker, "create", "b")
    with Comux(file, codec="raw") as second:
        assert stated(second) == {"a": {"rate": 5.0, "maxlen": 7}, "b": {}}
    file.write_text(head + "  - {cam_id: a, rate: 8}\n")
    with Comux(file, codec="raw") as third:
        assert stated(third) == {"a": {"rate": 8.0, "maxlen": 7}, "b": {}}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"control_topic": None}, "durable_control without control_topic"),
        ({"durable_control": 1}, "durable_control 1 is int"),
        ({"client_name": "my program"}, "client 'my program'"),
        ({"client_name": ""}, "name, which is empty"),
        ({"produce_schema": "config_state_:cam_id"}, "control plane"),
    ],
)
def test_wrong_words_are_one_clear_error_before_anything_runs(
    live: Callable[..., Comux], broker: Broker, feed: Any, options: Any, says: str
) -> None:
    feed("a")
    with pytest.raises(ConfigError, match=says):
        live(["a"], **options)
    assert not [topic for topic in broker.topics() if topic.startswith("config_state")]


def test_a_fleets_cameras_are_the_groups_business(live: Callable[..., Comux], feed: Any) -> None:
    feed("a")
    with pytest.raises(ConfigError, match="durable_control with share"):
        live(["a"], share="group").start()


def test_a_schema_makes_no_state_a_source(live: Callable[..., Comux], broker: Broker, feed: Any) -> None:
    feed("a")
    live([{"cam_id": "a", "consume_topic": "raw_a"}], consume_schema="config_:cam_id").start()
    answer = send_command(broker, "config", "create", {"cam_id": "state_comux"}, timeout=LONG)
    assert "control plane" in answer["error"]["message"]


def test_a_second_program_of_that_name_is_refused_and_leaves_nothing(
    address: str, live: Callable[..., Comux], feed: Any, fake: Any
) -> None:
    feed("a")
    live(["a"]).start()
    words: dict[str, Any] = {"address": address, "decoder_factory": fake, "control_topic": "config"}
    with pytest.raises(TopicBusyError, match="client_name"):
        Comux(["a"], durable_control=True, **words)
    with Comux(["a"], durable_control=True, client_name="other", **words) as other:
        assert other.status()["control"]["durable"]["topic"] == state_topic_of("config", "other")
