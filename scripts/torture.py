#!/usr/bin/env python3
"""Torture the ring: processes that work on one topic and are killed all the time, and what became of every promise.

    scripts/torture.py --seconds 600 --seed 7          rounds on all kinds of ring
    scripts/torture.py --campaign --seconds 3600       until each named step had its deaths on each kind; goes on where
                                                       the last one stopped

Prints its seed and writes a report (.json and .txt; of a campaign also a page for the docs). Exit code 1 where a
promise was broken; the journals are kept then. See docs/how-to/prove-the-ring.md.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from comux.testing.ring_campaign import Campaign, page
from comux.testing.ring_faults import VictimServer
from comux.testing.ring_report import Report
from comux.testing.ring_torture import Torture

SHM = Path("/dev/shm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=None, help="of everything random but the scheduling (drawn)")
    parser.add_argument("--campaign", action="store_true", help="aim at what has had too few deaths")
    parser.add_argument("--goal", type=int, default=100, help="deaths per failpoint, policy and kind (100)")
    parser.add_argument("--jobs", type=int, help="of a campaign: so many tortures at a time (one per core)")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path(os.environ.get("COMUX_TORTURE_REPORT") or "torture-report"),
        help="path of the report without suffix ($COMUX_TORTURE_REPORT, else torture-report)",
    )
    parser.add_argument("--page", type=Path, help="of a campaign: where the page for the docs goes (beside the report)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="comux-torture-", dir=SHM if SHM.is_dir() else None))
    kept = False
    try:
        report = campaign(options, seed, place) if options.campaign else torture(options, seed, place)
        kept = bool(report.violations)
    except KeyboardInterrupt:
        print("stopped" + (f"; goes on from {options.report}.json when started again" if options.campaign else ""))
        return 130
    finally:
        if not kept:
            shutil.rmtree(place)
    if kept:
        print(f"the journals are in {place}")
    return int(kept)


def torture(options: argparse.Namespace, seed: int, place: Path) -> Report:
    with VictimServer() as server:
        report = Torture(server, place, seed).run(options.seconds)
    print(report)
    print("report:", *report.write(options.report))
    return report


def campaign(options: argparse.Namespace, seed: int, place: Path) -> Report:
    going = Campaign(options.report, place, seed, options.goal, lambda line: print(line, flush=True), options.jobs)
    report = going.run(options.seconds)
    print(report)
    files = report.write(options.report)
    markdown = options.page or options.report.with_suffix(".md")
    markdown.write_text(page(report, going.failpoints, options.goal))
    print("report:", *files, markdown)
    wanting = {cell: n for cell, n in going.lacking().items() if n}
    print(f"deaths still wanting for {options.goal} everywhere: {wanting or 'none'}")
    return report


if __name__ == "__main__":
    sys.exit(main())
