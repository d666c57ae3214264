"""The judge of the ring's torture: reads what every process wrote down and names each promise that was broken.

* nothing lost: every put that returned was acknowledged in each group, or came out in the final drain; what a ring that
  drops the oldest did not deliver is in the group's count of losses, and no more than that is missing;
* refused is refused: a put that said the ring was full (``drop_newest``) left nothing behind;
* one holder: no record was held by two living members of a group at once;
* final: no record was delivered after an acknowledgement that returned, in its group;
* unchanged: every value proved itself when it was handed out and again before it was acknowledged;
* marked: each delivery but the first says ``redelivered``, and there are no more of them than deaths explain;
* told: between two records of the lossy reader lie exactly as many as it was told it skipped;
* no stall: no group stood still for more than thirty seconds.

``judge`` is a pure function of the journals, so that a test can hand it a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from comux.testing.ring_roles import HELD

STALL_NS = 30_000_000_000  # a starved machine may hold everybody up for some seconds


@dataclass
class Evidence:
    """What one process wrote down: ``lines`` are (what, words), words[0] the time. ``group`` of members only."""

    name: str
    group: str
    lines: list[tuple[str, list[str]]]


@dataclass
class _Delivery:
    offset: int
    seq: int
    began: int
    until: int  # holding was certain up to here: its acking, or the last line of a process that died
    marked: bool | None  # None: the call that handed it out does not tell
    fate: str  # acked, doubtful (acking only), nacked, died
    who: str


def _deliveries(evidence: Evidence) -> list[_Delivery]:
    open_: dict[int, _Delivery] = {}
    done: list[_Delivery] = []
    last = 0
    for what, words in evidence.lines:
        if what == "error":
            continue
        last = int(words[0])
        if what == "start":
            offset = int(words[1])
            marked = None if words[3] == "?" else words[3] == "1"
            open_[offset] = _Delivery(offset, int(words[2]), last, last, marked, "died", evidence.name)
            done.append(open_[offset])
        elif what in ("acking", "nacking", "acked", "nacked") and int(words[1]) in open_:
            held = open_[int(words[1])]
            if what in ("acking", "nacking"):
                held.until, held.fate = last, "doubtful" if what == "acking" else "returning"
            else:
                held.fate = what
                del open_[held.offset]
    for held in open_.values():
        if held.fate == "died":
            held.until = last
    return done


def _judge_record(group: str, offset: int, several: Sequence[_Delivery]) -> Iterable[str]:
    for earlier, later in pairwise(several):
        where = f"group {group}, offset {offset}: {earlier.who} then {later.who}"
        if later.began < earlier.until:
            yield f"{where}: two held it at once"
        if earlier.fate == "acked":
            yield f"{where}: delivered after an acknowledgement that had returned"
        if later.marked is False:
            yield f"{where}: delivered again without the mark"
        if later.seq != earlier.seq:
            yield f"{where}: two different values"


def _judge_reader(evidence: Evidence, exists: set[int], complete: bool) -> Iterable[str]:
    """``complete``: everything that exists is known. Else what is known is the least that was skipped."""
    last: int | None = None
    missed = 0
    for what, words in evidence.lines:
        if what == "opened":
            last, missed = int(words[1]) - 1, 0
        if what == "lapped":  # looked at and no longer whole; what was skipped before it is not repeated
            missed += int(words[2]) + 1
        if what != "got" or last is None:
            continue
        offset, told = int(words[1]), int(words[3]) + missed
        between = sum(o in exists for o in range(last + 1, offset))
        if between > told or told > offset - last - 1 or (complete and between != told):
            yield f"{evidence.name}: {between} records lie between {last} and {offset}, it was told of {told}"
        last, missed = offset, 0


def _stalls(group: str, times: Sequence[int]) -> Iterable[str]:
    for a, b in pairwise(times):
        if b - a > STALL_NS:
            yield f"group {group} stood still for {(b - a) / 1e9:.1f} s"


@dataclass
class _Puts:
    returned: dict[int, int]  # offset -> sequence number
    refused: set[int]  # sequence numbers

    @classmethod
    def of(cls, evidence: Sequence[Evidence], out: list[str]) -> _Puts:
        """What the producers were told; other processes' damage and errors go straight to ``out``."""
        puts = cls({}, set())
        for one in evidence:
            for what, words in one.lines:
                if what in ("torn", "error"):
                    out.append(f"{one.name}: {what} {' '.join(words)}")
                elif what == "refuse":
                    puts.refused.add(int(words[1]))
                elif what == "put" and puts.returned.setdefault(int(words[2]), int(words[1])) != int(words[1]):
                    out.append(f"offset {words[2]} was given to two puts")
        return puts


@dataclass
class _Group:
    """One group's side of the story."""

    name: str
    rest: Mapping[int, int]  # what the final drain gave: offset -> sequence number
    deliveries: list[_Delivery]
    lost: int | None  # None: nothing may be lost

    def records(self) -> dict[int, list[_Delivery]]:
        out: dict[int, list[_Delivery]] = {}
        for d in sorted(self.deliveries, key=lambda d: d.began):
            out.setdefault(d.offset, []).append(d)
        return out

    def judge(self, puts: _Puts, kills: int) -> Iterable[str]:
        where = f"group {self.name}"
        records = self.records()
        left: list[int] = []  # held by somebody who died or gave it back, and never seen again
        for offset, several in records.items():
            yield from _judge_record(self.name, offset, several)
            if offset in self.rest and several[-1].fate == "acked":
                yield f"{where}, offset {offset}: drained after an acknowledgement that had returned"
            if offset not in self.rest and several[-1].fate in ("died", "nacked", "returning"):
                left.append(offset)
        unseen = sorted(set(puts.returned) - set(records) - set(self.rest))
        if self.lost is None and left:
            yield f"{where}: {len(left)} records held by who died and never again, the first {min(left)}"
        if self.lost is None and unseen:
            yield f"{where}: {len(unseen)} records whose put had returned are lost, the first {unseen[0]}"
        if self.lost is not None and len(left) + len(unseen) > self.lost + kills:
            yield f"{where}: {len(left) + len(unseen)} records are missing, {self.lost} were counted as lost"
        seen = {**self.rest, **{o: several[0].seq for o, several in records.items()}}
        for offset, seq in seen.items():
            if puts.returned.get(offset, seq) != seq:
                yield f"offset {offset} holds {seq}, put {puts.returned[offset]}"
            if seq in puts.refused:
                yield f"offset {offset} holds {seq}, whose put was refused"
        yield from _stalls(where, sorted(d.until for d in self.deliveries if d.fate == "acked"))


def judge(
    evidence: Sequence[Evidence],
    drained: Mapping[str, Mapping[int, int]],
    deaths: int,
    lost: Mapping[str, int] | None = None,
    kills: int = 0,
) -> list[str]:
    """Every promise that was broken, in words.

    Args:
        evidence: the journals of all processes.
        drained: per group, what was still to be had at the end: offset -> sequence number.
        deaths: members that were killed; each explains as many repetitions as it could hold.
        lost: per group, what the ring counted as lost; ``None``: this ring may lose nothing.
        kills: all that were killed; the count of losses may miss one by each.
    """
    out: list[str] = []
    puts = _Puts.of(evidence, out)
    again = given_back = 0
    exists: set[int] = set(puts.returned)
    for name, rest in drained.items():
        deliveries = [d for one in evidence if one.group == name for d in _deliveries(one)]
        group = _Group(name, rest, deliveries, None if lost is None else lost[name])
        out.extend(group.judge(puts, kills))
        again += len(deliveries) - len(group.records())
        given_back += sum(d.fate in ("nacked", "returning") for d in deliveries)
        exists |= set(rest) | {d.offset for d in deliveries}
    if again > given_back + deaths * HELD:
        out.append(
            f"{again} records came again; {given_back} were given back and {deaths} deaths explain {deaths * HELD}"
        )
    for one in evidence:
        out.extend(_judge_reader(one, exists, lost is None))
    return out
