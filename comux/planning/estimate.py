"""The arithmetic: from what is asked for and what things cost to machines, brokers, and what is short first.

Pure. What is needed (``needs``) is multiplied by ``Demand.safety`` before it is compared with what there is. One broker
(of several) and one machine may always be missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .costs import Costs
from .demand import Demand
from .figures import (
    PARTITIONS_PER_BROKER,
    Plan,
    cluster_figures,
    decoding_figures,
    fleet_figures,
    memory_figures,
    network_figures,
    warnings_of,
)
from .needs import Needs, broker_cores, metadata_s, needs_of


def plan(demand: Demand, costs: Costs) -> Plan:
    """How many machines and brokers, and why.

    Raises:
        ConfigError: the codec was not measured.
    """
    needs = needs_of(demand, costs)
    safe, n = demand.safety, demand.cameras
    on_kafka = demand.engine == "kafka"
    topics = n * (1 if demand.results_bytes is None else 2)
    processes = needs.processes
    looks_s = metadata_s(topics, costs)
    member = costs.group.member + topics * costs.group.metadata_topic_s / looks_s if on_kafka else 0.0
    engine = costs.engine(demand.engine)
    memory = n * (needs.camera_bytes + needs.shared_bytes) + processes * engine.process_bytes
    load = {
        "cores": safe * (needs.cores + processes * member) / demand.cores,
        "memory": safe * memory / demand.memory_bytes,
    }
    if on_kafka:
        load["network in"] = safe * 8 * needs.in_bytes / demand.network_bits
        load["network out"] = safe * 8 * needs.out_bytes / demand.network_bits
    limit = max(load, key=lambda name: load[name])
    busy = math.ceil(load[limit])
    machines = busy + 1 if on_kafka and busy > 1 else busy
    processes = max(processes, machines)
    broker_load = _broker_load(demand, costs, needs, topics) if on_kafka else {}
    brokers, broker_limit = _brokers(demand, broker_load)
    out = Plan(demand, costs.source, machines, processes, brokers, limit, broker_limit, load, broker_load)
    out.figures.extend(decoding_figures(demand, costs, needs, out, member))
    out.figures.extend(memory_figures(demand, needs, out, engine.process_bytes))
    if on_kafka:
        out.figures.extend(network_figures(demand, costs, needs, machines))
        out.figures.extend(cluster_figures(demand, costs, needs, out, topics))
        out.figures.extend(fleet_figures(demand, costs, out, topics))
    out.warnings.extend(warnings_of(out, needs, topics))
    return out


def _broker_load(demand: Demand, costs: Costs, needs: Needs, topics: int) -> dict[str, float]:
    """Brokers needed, by resource, safety included, none of them missing."""
    copies, taken = demand.replication, needs.in_bytes + needs.out_bytes
    bits = demand.broker_network_bits
    return {
        "network in": demand.safety * 8 * taken * copies / bits,
        "network out": demand.safety * 8 * (taken * (copies - 1) + needs.read_bytes) / bits,
        "partitions": topics * copies / PARTITIONS_PER_BROKER,
        "cores": demand.safety * broker_cores(demand, costs, needs) / demand.broker_cores,
    }


def _brokers(demand: Demand, load: Mapping[str, float]) -> tuple[int, str]:
    if not load:
        return 0, ""
    limit = max(load, key=lambda name: load[name])
    spare = 1 if demand.replication > 1 else 0
    needed = math.ceil(load[limit]) + spare
    if demand.brokers is not None:
        return demand.brokers, limit
    return (needed, limit) if needed > demand.replication else (demand.replication, "copies")
