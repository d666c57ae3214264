"""The demo on a real broker: the same program, one address changed."""

from __future__ import annotations

import json
import uuid

from service_fixtures import KafkaCluster

from comux.transport import connect


def test_the_demo_runs_on_a_cluster_and_leaves_no_topic(start, kafka: KafkaCluster) -> None:
    address = f"kafka://{kafka.bootstrap}?prefix=demo-{uuid.uuid4().hex[:10]}."
    demo = start("demo", "--seconds", "4", "--size", "320x180", "--format", "json", "--address", address)
    ended = demo.end(90)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    for cam_id, account in told["sources"].items():
        parts = account["delivered"] + account["absorbed"] + sum(account["dropped"].values()) + account["held"]
        assert account["received"] == parts, (cam_id, account)
        assert account["delivered"] > 0, cam_id
    results = told["results"]
    assert 0 < results["sent"] == results["read_back"] == results["verified"]
    assert (results["missed"], results["trouble"], told["misread"]) == (0, "", 0)
    with connect(address) as broker:
        assert broker.topics() == []
