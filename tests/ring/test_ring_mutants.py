"""The test of the torture: a ring that is wrong in one place is found out, each way of being wrong within seconds.

Four mutants of the C core reverse the order of two stores, or look at the wrong word, in ways that matter only when
somebody dies, or is slow, at the wrong instant. (The fifth of the design, "generation ignored", needs a slot to be used
again within the window of one probe; the models find it.)
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from ring_native import Change, Mutant, build_extension, patched_copy

from comux.testing.ring_faults import VictimServer
from comux.testing.ring_torture import SHAPES, Shape, Torture

SECONDS = 90.0  #: the wall; a mutant is usually found in the first rounds, and the torture ends there

HEAD_BEFORE_WORD = Mutant(
    "head before word",
    (
        Change(
            "produce.c",
            "    out->claim_len = claim_bytes(a, sizes, 0);\n",
            "    out->claim_len = claim_bytes(a, sizes, 0);\n"
            "    if (!a->one_writer) STR(a->ctl->head, w->head + w->n);\n"
            '    FAILPOINT("claim.before_head");\n',
        ),
        Change("produce.c", '    FAILPOINT("claim.before_head");\n    STR(a->ctl->head, w->head + w->n);\n', ""),
    ),
    ("claim.before_head",),
)
WORDS = "    for (uint64_t i = 0; i < *n; i++) STR(*cx_word_at(a, m->group, next + i), mine(m, 0, direct));\n"
STEP = '    FAILPOINT("take.words");\n'
NEXT = "    STR(g->next, next + *n);\n"
NEXT_BEFORE_WORDS = Mutant(
    "next before words", (Change("consume.c", WORDS + STEP + NEXT, NEXT + STEP + WORDS),), ("take.words",)
)
GATE_ON_NEXT = Mutant(
    "gate on next",
    (Change("groups.c", "LD(g->done) < gate) gate = LD(g->done);", "LD(g->next) < gate) gate = LD(g->next);"),),
)
PORT_FREED_FIRST = Mutant(
    "port freed first",
    (
        Change(
            "recover.c",
            "        if (p->kind == CX_PORT_PRODUCER) resolve_claims(a, i);\n",
            "        cx_port_fold(a, i);\n        if (p->kind == CX_PORT_PRODUCER) resolve_claims(a, i);\n",
        ),
        Change("recover.c", "        INC(a->ctl->reaped, 1);\n        cx_port_fold(a, i);\n", ""),
    ),
    ("port.after_free", "take.next", "start.after_word"),
)
MUTANTS = (HEAD_BEFORE_WORD, NEXT_BEFORE_WORDS, GATE_ON_NEXT, PORT_FREED_FIRST)
WAITING = tuple(shape for shape in SHAPES if shape.policy == "wait")


def caught(mutant: Mutant, place: Path, shapes: tuple[Shape, ...]) -> list[str]:
    """What the torture finds wrong with a mutant."""
    tree = build_extension(patched_copy(mutant.changes, place), place, ["-O0"])
    seed = random.SystemRandom().randrange(2**31)
    with VictimServer({"PYTHONPATH": str(tree)}) as server:
        assert Path(server.module()).is_relative_to(tree), f"the victims are no mutants: {server.module()}"
        report = Torture(server, place, seed, mutant.failpoints).run(SECONDS, shapes, round_seconds=5.0)
    print(f"\n{mutant.name}: {report}")
    return report.violations


def test_a_ring_that_overwrites_what_is_being_read_is_caught(ring_dir: Path) -> None:
    """The quick one, in every run of the tests."""
    assert caught(GATE_ON_NEXT, ring_dir, WAITING)


@pytest.mark.torture
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_torture_catches_the_mutant(mutant: Mutant, ring_dir: Path) -> None:
    """All kinds of ring; armed are the steps at which a death shows the difference."""
    assert caught(mutant, ring_dir, SHAPES)


def test_every_mutant_is_still_a_change_of_the_core(tmp_path: Path) -> None:
    """Also the ones that only ``make torture`` builds: what they replace is there, exactly once."""
    for i, mutant in enumerate(MUTANTS):
        assert patched_copy(mutant.changes, tmp_path / str(i)).is_dir()


def test_a_change_that_no_longer_fits_is_no_mutant(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="0 times, not once"):
        patched_copy([Change("lock.c", "no such line", "")], tmp_path)
