"""A manager as it stands, as plain data for people, commands and dashboards."""

from __future__ import annotations

import time
from typing import Any

from comux.account import total
from comux.multiplexer.core import Core
from comux.multiplexer.source import Source
from comux.redaction import shown


def source_status(source: Source) -> dict[str, Any]:
    """One source, JSON-ready; seconds and Unix seconds.

    ``fps`` is of pictures decoded and kept, ``delivered_fps`` of what callers took; ``lag_figure_age`` says how old the
    two lag figures are; ``age`` is the last delivered picture's, from capture to delivery.
    ``clock_behind``: seconds that the clock of the newest packet is behind this host's, 0 where it is this host's own;
    ``age_estimated``: whether that is an estimate, and with it the ages; ``clock_epochs``: how often it was set.
    """
    records, seconds, figure_age = source.intake.lag_figures()
    now = time.monotonic_ns()
    options, clock = source.options, source.intake.clock
    return {
        "state": str(source.state),
        "reason": source.reason,
        "since": (now - source.since_ns) / 1e9,
        "mode": source.store.mode,
        "finite": source.finite,
        "topic": source.topic,
        "address": shown(options.address or ""),
        "codec": options.codec,
        "size": None if source.size is None else list(source.size),
        "fps": round(source.pictures.rate(now), 2),
        "packets_per_second": round(source.intake.arrivals.rate(now), 2),
        "delivered_fps": round(source.deliveries.rate(now), 2),
        "lag": records,
        "lag_seconds": round(seconds, 6),
        "lag_figure_age": round(figure_age, 6),
        "age": source.last_age,
        "age_estimated": clock.estimated,
        "clock_behind": round(clock.newest_behind_ns / 1e9, 6),
        "clock_epochs": clock.epochs,
        "position": source.intake.position,
        "jumps": source.jumps,
        "restarts": source.restarts,
        "damage": source.damage,
        "retained": len(source.retained),
        "retained_bytes": source.retained.nbytes,
        "waiting": len(source.store),
        "waiting_bytes": source.store.waiting_bytes(),
        "account": source.account.snapshot().as_dict(),
    }


def manager_status(core: Core, name: str) -> dict[str, Any]:
    """Every source, what was said of each (``stated``), the totals (deleted sources included), memory, the results, and
    the processes that decode.

    ``memory``: bytes of decoded pictures that wait, of all sources, and the limit of that (``store_bytes_total``);
    bytes of arrays that wait to be used again, and how many are in somebody's hands.
    """
    accounts = core.accounts()
    with core.hub.lock:
        waiting_bytes = core.hub.nbytes
    return {
        "client": name,
        "started": core.started,
        "fleet": None if core.fleet is None else core.fleet.status(),
        "address": shown(core.settings.address),
        "sources": {str(source.cam_id): source_status(source) for source in core.table.sources},
        "stated": {key: spec.stated() for key, spec in list(core.specs.items())},
        "total": total(accounts.values()).as_dict(),
        "memory": {
            "waiting_bytes": waiting_bytes,
            "waiting_bytes_max": core.hub.max_bytes,
            "idle_array_bytes": core.pool.idle_bytes,
            "arrays_lent": core.pool.lent,
        },
        "results": core.results.account().as_dict(),
        "decode_processes": core.processes.status(),
    }
