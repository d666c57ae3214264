"""A running program brought to what is desired, through its control topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comux import Comux
from comux.control import Remote, apply, changes_to
from comux.errors import CommandError, UnknownTopicError, WaitTimeoutError
from comux.options import SourceOptions
from comux.transport import TopicSpec, connect

ADDRESS = "memory://remote"


@pytest.fixture
def program() -> Iterator[Callable[..., Comux]]:
    with connect(ADDRESS) as broker:
        for name in ("raw_a", "raw_b", "raw_c", "raw_d"):
            broker.create_topic(TopicSpec(name, records=16), exist_ok=True)
        running: list[Comux] = []

        def begin(*sources: Any, **options: Any) -> Comux:
            cameras = Comux(list(sources), address=ADDRESS, control_topic="config", **options)
            running.append(cameras)
            cameras.start()
            return cameras

        yield begin
        for each in running:
            each.close()
        for name in broker.topics():
            broker.delete_topic(name, force=True)


@pytest.fixture
def remote() -> Iterator[Remote]:
    with Remote(ADDRESS, "config", timeout=20.0) as opened:
        yield opened


def test_a_program_is_brought_to_what_is_desired_and_then_nothing_differs(
    program: Callable[..., Comux], remote: Remote
) -> None:
    cameras = program(
        "a", {"cam_id": "b", "rate": 5.0, "W": 64, "H": 48}, {"cam_id": "c", "rate": 2.0}, mode="freshest"
    )
    desired = [
        SourceOptions(cam_id="a", rate=1.0),
        SourceOptions(cam_id="c"),
        SourceOptions(cam_id="d", dtype="<i2", shape=[2, 3], extradata=b"\x00\xff", codec="raw"),
    ]
    there = remote.sources(desired)
    assert [source.stated() for source in there] == [
        {"cam_id": "a"}, {"cam_id": "b", "W": 64, "H": 48, "rate": 5.0}, {"cam_id": "c", "rate": 2.0},
    ]  # fmt: skip
    changes = changes_to(there, desired)
    assert [(change.action, change.cam_id) for change in changes] == [
        ("delete", "b"), ("update", "a"), ("update", "c"), ("create", "d"),
    ]  # fmt: skip
    done = apply(remote, changes)
    assert [each.error for each in done] == [None] * 4
    assert cameras.cam_ids == ("a", "c", "d")
    assert changes_to(remote.sources(desired), desired) == ()
    d = remote.sources(desired)[2]
    assert (d.dtype, d.shape, d.extradata) == ("<i2", (2, 3), b"\x00\xff")
    without = changes_to(remote.sources(), desired[:1], delete=False)
    assert without == ()


def test_one_change_that_is_refused_does_not_keep_the_others(program: Callable[..., Comux], remote: Remote) -> None:
    cameras = program("a")
    desired = [
        SourceOptions(cam_id="a", client_options={"x": 1}),
        SourceOptions(cam_id="nothing"),
        SourceOptions(cam_id="c"),
    ]
    told: list[Any] = []
    done = apply(remote, changes_to(remote.sources(desired), desired), told.append)
    assert [each.change.cam_id for each in done if each.error is None] == ["c"]
    assert "client_options can be set by the program only: start it again" in (done[0].error or "")
    assert "raw_nothing" in (done[1].error or "")
    assert tuple(told) == done
    assert cameras.cam_ids == ("a", "c")


def test_secrets_are_not_told_and_make_no_difference(program: Callable[..., Comux], remote: Remote) -> None:
    secret = "kafka://127.0.0.1:1?security_protocol=SASL_PLAINTEXT&sasl_mechanism=PLAIN&sasl_plain_username=u"
    secret += "&sasl_plain_password=hunter2"
    program("a", {"cam_id": "b", "address": secret}, strict_on_fail=False)
    assert "hunter2" not in str(remote.ask("status"))
    desired = [SourceOptions(cam_id="a"), SourceOptions(cam_id="b", address=secret)]
    assert changes_to(remote.sources(desired), desired) == ()


def test_of_several_programs_the_one_that_answered_is_changed(program: Callable[..., Comux], remote: Remote) -> None:
    both = {name: program("a", client_name=name) for name in ("one", "two")}
    there = remote.sources()
    assert remote.target in both
    apply(remote, changes_to(there, [SourceOptions(cam_id="a"), SourceOptions(cam_id="b")]))
    assert both.pop(remote.target).cam_ids == ("a", "b")
    (other,) = both.values()
    assert other.cam_ids == ("a",)


def test_nobody_answers(remote: Remote) -> None:
    with pytest.raises(UnknownTopicError, match="config"):
        remote.ask("status")
    with connect(ADDRESS) as broker:
        broker.create_topic(TopicSpec("config", records=16, policy="drop_oldest"))
        remote.timeout = 0.1
        with pytest.raises(WaitTimeoutError, match="is the program that it controls running"):
            remote.ask("status")
        for name in broker.topics():
            broker.delete_topic(name, force=True)


def test_what_is_refused_is_an_error_that_says_why(program: Callable[..., Comux], remote: Remote) -> None:
    program("a", client_name="bench")
    with pytest.raises(CommandError, match=r"bench did not delete: no source 'x'; there are: 'a'"):
        remote.ask("delete", "x")
    assert remote.answer("delete", "x")["ok"] is False


def test_commands_and_answers_are_overheard_whatever_is_in_them(program: Callable[..., Comux], remote: Remote) -> None:
    program("a")
    with Remote(ADDRESS, "config", timeout=20.0) as other, connect(ADDRESS) as broker:
        remote.ask("set_rate", {"cam_id": "a", "rate": 2.0})
        with broker.producer("config") as producer:
            producer.send(b"\xff{", key=b"\xfe").result(10)
        heard = []
        for said in other.overhear("beginning"):
            heard.append(said)
            if len(heard) == 4:
                break
    commands = [said for said in heard if said["kind"] == "command"]
    answers = [said for said in heard if said["kind"] == "answer"]
    assert [(said["action"], said["value"]) for said in commands] == [
        ("set_rate", {"cam_id": "a", "rate": 2.0}),
        (None, "\\xff{"),
    ]
    assert [said["ok"] for said in answers] == [True, False]
    assert commands[0]["request_id"] == answers[0]["request_id"]
    assert answers[0]["responder"] == "comux"
