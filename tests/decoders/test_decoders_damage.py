"""Damage: what is delivered as fresh is right, what is not is counted, and correct streams raise no alarm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comux.decoders.damage import Doubt, Watch
from comux.records import HEADER_FEED, HEADER_SEQUENCE

INTER = (
    "h264",
    "h264-open",
    "h264-pyramid",
    "h264-refresh",
    "hevc",
    "hevc-open",
    "hevc-pyramid",
    "vp9",
    "av1",
    "av1-pyramid",
)


def check_pixels(kit, source, outcomes, index_of):
    """Every picture delivered as fresh is bit for bit what the undamaged stream gives for that packet."""
    reference = source.decode_all()
    fresh = [o.picture for o in outcomes if o.picture is not None and not o.picture.degraded]
    for picture in fresh:
        assert kit.pixels(picture.frame) == reference[index_of(picture)], picture
    return len(fresh)


def same(picture):
    return picture.identity.offset


@pytest.mark.parametrize("name", INTER)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("fault", ["missing", "corrupt", "cut", "swap", "restart"])
def test_a_fault_in_our_stream_costs_pictures_up_to_the_next_keyframe_and_no_wrong_one(kit, name, threads, fault):
    source = kit.stream(name)
    records = kit.stamp_all(source)
    at = 13
    if fault == "missing":
        del records[at]
    elif fault == "corrupt":
        data = bytearray(records[at].value)
        data[len(data) // 2] ^= 0x10
        records[at] = kit.with_value(records[at], bytes(data))
    elif fault == "cut":
        records[at] = kit.with_value(records[at], records[at].value[:-3])
    elif fault == "swap":
        records[at], records[at + 1] = records[at + 1], records[at]
    else:
        for i in range(at, len(records)):
            records[i] = kit.stamped(i, source.packets[i], i - at, key=source.keys[i])
    made = kit.decoder(source, threads=threads)
    outcomes = kit.run(made, records)
    assert sum(made.damage.values()) >= 1
    delivered = check_pixels(kit, source, outcomes, same)
    following = [
        i for i, data in enumerate(source.packets) if i > at + 1 and kit.decoder(source).starts_at(kit.record(0, data))
    ]
    if following and name != "h264-refresh":
        assert delivered >= at - 6 + len(source.packets) - following[0] - 4
        assert {o.cause for o in outcomes if o.picture is None} <= {"resync", "absorbed", "no_picture"}
    clean_before = {o.record.offset for o in outcomes if o.picture is not None and o.record.offset < at}
    assert clean_before == set(range(at)), "what was decoded before the damage is delivered, however late it is shown"


@pytest.mark.parametrize("name", INTER)
def test_a_duplicate_is_dropped_alone(kit, name):
    source = kit.stream(name)
    records = kit.stamp_all(source)
    again = replace(records[13], offset=14)
    records = records[:14] + [again] + [replace(r, offset=r.offset + 1) for r in records[14:]]
    made = kit.decoder(source)
    outcomes = kit.run(made, records)
    assert [o.record.offset for o in outcomes if o.cause] == [14]
    assert [o.cause for o in outcomes if o.cause] == ["duplicate"] and dict(made.damage) == {"duplicate": 1}
    assert not made.resyncing or made.in_flight == 0
    check_pixels(kit, source, outcomes, lambda p: p.identity.offset - (p.identity.offset > 13))


@pytest.mark.parametrize("name", ["h264", "h264-open", "hevc", "hevc-open", "vp9", "av1"])
def test_joining_in_mid_gop_is_no_damage_and_delivers_nothing_wrong(kit, name):
    source = kit.stream(name)
    made = kit.decoder(source)
    assert made.resyncing
    outcomes = kit.run(made, kit.stamp_all(source)[7:])
    assert dict(made.damage) == {}
    assert check_pixels(kit, source, outcomes, same) >= 25
    assert {o.cause for o in outcomes if o.cause} == {"resync"}


def test_pictures_that_lead_an_open_keyframe_are_dropped_after_a_start_there(kit):
    for name in ("h264-open", "hevc-open"):
        source = kit.stream(name)
        starts = [i for i, key in enumerate(source.keys) if key]
        leading = [
            i
            for i in range(starts[1] + 1, starts[2])
            if source.numbers[i] < source.numbers[starts[1]]
        ]  # fmt: skip
        assert leading, "the recipe must make an open GOP"
        outcomes = kit.run(kit.decoder(source), kit.stamp_all(source)[starts[1] :])
        assert sorted(o.record.offset for o in outcomes if o.cause == "resync") == leading
        check_pixels(kit, source, outcomes, same)


def test_an_intra_refresh_stream_is_joined_without_a_keyframe(kit):
    source = kit.stream("h264-refresh")
    outcomes = kit.run(kit.decoder(source), kit.stamp_all(source)[5:])
    delivered = [o.record.offset for o in outcomes if o.picture]
    assert delivered and delivered == list(range(delivered[0], len(source.packets)))
    check_pixels(kit, source, outcomes, same)


@pytest.mark.parametrize(
    "name", ["h264", "h264-plain", "h264-pyramid", "h264-250", "hevc", "hevc-open", "hevc-pyramid"]
)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_reference_lost_before_the_topic_is_seen_by_its_numbers(kit, name, threads):
    """A foreign stream: no headers, contiguous offsets. What refers to the lost picture never comes out as fresh."""
    source = kit.stream(name)
    for lost in range(1, len(source.packets), 4):
        kept = [i for i in range(len(source.packets)) if i != lost]
        outcomes = kit.run(
            kit.decoder(source, threads=threads), [kit.record(at, source.packets[i]) for at, i in enumerate(kept)]
        )
        check_pixels(kit, source, outcomes, lambda p, kept=kept: kept[p.identity.offset])


@pytest.mark.parametrize("name", ["h264", "h264-plain", "h264-pyramid", "h264-strict"])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_the_codec_flags_takes_the_pictures_that_refer_to_it_along(kit, name, threads):
    """A foreign H.264 packet cut short: B-pictures shown before it, but decoded after it, are not delivered either."""
    source = kit.stream(name)
    seen = 0
    for at in range(1, len(source.packets), 3):
        data = source.packets[at]
        records = [kit.record(i, d if i != at else data[: len(data) * 2 // 3]) for i, d in enumerate(source.packets)]
        made = kit.decoder(source, threads=threads)
        outcomes = kit.run(made, records)
        if made.damage["codec"]:  # a cut that happens to end on a block is seen by nobody
            check_pixels(kit, source, outcomes, same)
            seen += 1
    assert seen >= 15


@pytest.mark.parametrize("name", ["h264", "hevc"])
def test_a_foreign_duplicate_is_seen_by_its_bytes(kit, name):
    source = kit.stream(name)
    order = [*range(14), *range(13, len(source.packets))]
    made = kit.decoder(source)
    outcomes = kit.run(made, [kit.record(at, source.packets[i]) for at, i in enumerate(order)])
    assert [o.cause for o in outcomes if o.cause] == ["duplicate"]
    check_pixels(kit, source, outcomes, lambda p: order[p.identity.offset])


@pytest.mark.parametrize("name", ["h264", "hevc", "vp9", "av1"])
@pytest.mark.parametrize("how", ["jump", "skipped"])
def test_an_offset_gap_is_damage_where_nothing_proves_otherwise(kit, name, how):
    source = kit.stream(name)
    records = [kit.record(i, data) for i, data in enumerate(source.packets)]
    if how == "jump":
        del records[13]
    else:
        records[13:15] = [replace(records[14], offset=13, skipped=1)]
        records[14:] = [replace(r, offset=r.offset - 1) for r in records[14:]]
    made = kit.decoder(source)
    outcomes = kit.run(made, records)
    assert made.damage["offset_gap"] == 1
    check_pixels(kit, source, outcomes, lambda p: p.identity.offset + (how == "skipped" and p.identity.offset >= 13))


def test_holes_in_offsets_are_fine_where_the_sequence_has_none(kit):
    """Kafka: transactions and compaction leave holes in offsets."""
    source = kit.stream("h264")
    records = [kit.stamped(i * 3, data, i) for i, data in enumerate(source.packets)]
    made = kit.decoder(source)
    outcomes = kit.run(made, records)
    assert dict(made.damage) == {} and all(o.picture for o in outcomes)


def test_jpeg_damage_stays_in_its_picture(kit):
    source = kit.stream("mjpeg")
    records = kit.stamp_all(source)
    data = bytearray(records[5].value)
    data[300] ^= 1
    records[5] = kit.with_value(records[5], bytes(data))
    del records[9]
    foreign = [kit.record(i, d) for i, d in enumerate(source.packets)]
    foreign[7] = kit.record(7, source.packets[7][:-40])
    outcomes = kit.run(kit.decoder(source), records)
    assert [o.record.offset for o in outcomes if o.cause] == [5]
    assert check_pixels(kit, source, outcomes, same) == len(source.packets) - 2
    outcomes = kit.run(kit.decoder(source), foreign)
    assert [o.record.offset for o in outcomes if o.cause] == [7]


@pytest.mark.parametrize("name", ["h264", "h264-open", "hevc", "hevc-open", "vp9", "av1"])
@pytest.mark.parametrize("threads", [1, 3])
def test_deliver_marks_what_is_in_doubt_and_only_that_may_be_wrong(kit, name, threads):
    source = kit.stream(name)
    for at in (3, 13, 27):
        records = kit.stamp_all(source)
        data = bytearray(records[at].value)
        data[len(data) // 2] ^= 0x10
        records[at] = kit.with_value(records[at], bytes(data))
        outcomes = kit.run(kit.decoder(source, on_damage="deliver", threads=threads), records)
        fresh = check_pixels(kit, source, outcomes, same)
        degraded = sum(o.picture is not None and o.picture.degraded for o in outcomes)
        if name != "av1":  # whose codec gives nothing after an error, up to the next keyframe
            assert degraded > 0 and fresh + degraded >= len(source.packets) - 3
        assert fresh >= at


FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["missing", "duplicate", "swap", "corrupt", "cut", "empty", "jump", "epoch", "end", "junk"]),
        st.integers(0, 59),
        st.integers(0, 1 << 30),
    ),
    max_size=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(INTER),
    faults=FAULTS,
    threads=st.sampled_from([1, 1, 2]),
    deliver=st.booleans(),
)
def test_any_mixture_of_faults_leaves_balanced_books_and_no_wrong_picture(kit, name, faults, threads, deliver):
    source = kit.stream(name)
    items = [(i, record) for i, record in enumerate(kit.stamp_all(source))]
    actions = {}
    for kind, at, seed in faults:
        at %= len(items)
        index, one = items[at]
        rng = np.random.default_rng(seed)
        if kind == "missing":
            del items[at]
        elif kind == "duplicate":
            items.insert(min(len(items), at + 1 + seed % 3), (index, one))
        elif kind == "swap" and at + 1 < len(items):
            items[at], items[at + 1] = items[at + 1], items[at]
        elif kind == "corrupt" and one.value:
            data = bytearray(one.value)
            for _ in range(1 + seed % 5):
                data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            items[at] = (index, kit.with_value(one, bytes(data)))
        elif kind == "cut" and one.value:
            items[at] = (index, kit.with_value(one, one.value[: rng.integers(len(one.value))]))
        elif kind == "empty":
            items.insert(at, (-1, kit.record(0, None)))
        elif kind == "junk":
            junk = rng.bytes(seed % 2000)
            # Not under the very number that is due: what our own feed vouches for is decoded, whatever it is.
            items.insert(at, (-1, kit.record(0, junk) if seed % 2 else kit.stamped(0, junk, 1000 + seed)))
        else:
            actions[at] = kind
    made = kit.decoder(source, threads=threads, on_damage="deliver" if deliver else "drop")
    outcomes, epoch, origin = [], 0, []
    for fed, (index, one) in enumerate(items):
        action = actions.get(fed)
        if action == "jump":
            outcomes += made.reset("jumped")
        elif action in ("epoch", "end"):
            if action == "end":
                outcomes += made.drain()
            epoch += 1
        origin.append(index)
        outcomes += made.feed(replace(one, offset=fed, epoch=epoch))
        assert sum(o.first for o in outcomes) + made.in_flight == fed + 1
    outcomes += made.drain()
    assert made.in_flight == 0
    assert sorted(o.record.offset for o in outcomes if o.first) == list(range(len(items)))
    check_pixels(kit, source, outcomes, lambda p: origin[p.identity.offset])


# -- the watch itself ------------------------------------------------------------------------------------------------


def numbers(kit, *sequence, epoch=0):
    watch = Watch(repeats_are_duplicates=False)
    out = []
    for offset, number in enumerate(sequence):
        number, content = number if isinstance(number, tuple) else (number, b"packet %d" % number)
        out.append(watch.judge(kit.stamped(offset, content, number, epoch=epoch), content))
    return [(v.doubt, v.reason) for v in out]


FINE = (Doubt.NONE, "")


def test_the_watch_tells_gaps_duplicates_late_packets_and_restarts_apart(kit):
    gap, late = (Doubt.BEFORE, "sequence"), (Doubt.DROP, "late")
    twice = (Doubt.DROP, "duplicate")
    assert numbers(kit, 5, 6, 7) == [FINE] * 3
    assert numbers(kit, 5, 7, 6, 8) == [FINE, gap, late, FINE]
    assert numbers(kit, 5, 6, 5, 6, 7) == [FINE, FINE, twice, twice, FINE]
    assert numbers(kit, 0, 1, 2, (0, b"new"), (1, b"new1"), (2, b"new2")) == [FINE] * 3 + [gap, FINE, FINE]
    assert numbers(kit, 1000, 1001, 0, 1) == [FINE, FINE, gap, FINE]
    assert numbers(kit, 100, 101, 1, 2) == [FINE, FINE, gap, FINE]


def test_the_same_packets_of_a_feed_that_restarted_did_not_come_twice(kit):
    watch = Watch(repeats_are_duplicates=True)

    def judge(offset, number, life, content=None):
        data = content or b"packet %d" % number
        one = kit.stamped(offset, b"packet %d" % number, number)
        verdict = watch.judge(replace(one, headers=(*one.headers, (HEADER_FEED, life))), data)
        return verdict.doubt, verdict.reason

    restarted, twice = (Doubt.BEFORE, "sequence"), (Doubt.DROP, "duplicate")
    first = [judge(n, n, b"aaaaaaaa") for n in range(5)]
    again = [judge(5 + n, n, b"bbbbbbbb") for n in range(3)]
    assert (first, again) == ([FINE] * 5, [restarted, FINE, FINE])
    assert [judge(8, 2, b"bbbbbbbb"), judge(9, 3, b"bbbbbbbb")] == [twice, FINE]
    # Killed, and what the next one publishes first is damaged on its way: the packet after it follows.
    assert judge(10, 0, b"cccccccc", b"damaged") == (Doubt.THIS, "crc")
    assert judge(11, 1, b"cccccccc") == FINE


def test_a_repeated_number_without_a_checksum_is_compared_by_content(kit):
    watch = Watch(repeats_are_duplicates=False)

    def judge(offset, number, data):
        one = kit.record(offset, data, headers=((HEADER_SEQUENCE, b"%d" % number),))
        return watch.judge(one, data).doubt

    assert [judge(0, 4, b"a"), judge(1, 4, b"a"), judge(2, 5, b"b"), judge(3, 5, b"c")] == [
        Doubt.NONE,
        Doubt.DROP,
        Doubt.NONE,
        Doubt.BEFORE,
    ]


@pytest.mark.parametrize("header", [b"", b"-1", b"1e3", b"\xff", b"9" * 30])
def test_headers_that_cannot_be_read_are_no_headers(kit, header):
    watch = Watch(repeats_are_duplicates=False)
    one = kit.record(0, b"x", headers=((HEADER_SEQUENCE, header), ("comux-crc32c", b"zz")))
    assert watch.judge(one, b"x").doubt is Doubt.NONE


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["h264", "h264-plain", "h264-pyramid", "h264-strict", "h264-mbaff", "hevc", "hevc-pyramid"]),
    faults=st.lists(st.tuples(st.sampled_from(["missing", "twice", "later", "swap"]), st.integers(0, 59)), max_size=3),
    threads=st.sampled_from([1, 1, 3]),
)
def test_streams_of_others_are_guarded_by_their_own_numbers(kit, name, faults, threads):
    """No headers, contiguous offsets: losses, repetitions and swaps of H.264 and HEVC packets, wherever they happen."""
    source = kit.stream(name)
    order = list(range(len(source.packets)))
    for kind, at in faults:
        at %= len(order)
        if kind == "missing":
            del order[at]
        elif kind in ("twice", "later"):
            order.insert(at + 1 + 2 * (kind == "later"), order[at])
        elif at + 1 < len(order):
            order[at : at + 2] = order[at + 1], order[at]
    outcomes = kit.run(
        kit.decoder(source, threads=threads), [kit.record(at, source.packets[i]) for at, i in enumerate(order)]
    )
    check_pixels(kit, source, outcomes, lambda p: order[p.identity.offset])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["h264", "h264-open", "hevc", "mjpeg"]),
    size=st.integers(20, 4000),
    faults=st.lists(st.tuples(st.sampled_from(["missing", "flip", "empty", "gap"]), st.integers(0)), max_size=4),
    deliver=st.booleans(),
)
def test_damaged_bytestreams_keep_their_books(kit, name, size, faults, deliver):
    source = kit.stream(name)
    everything = b"".join(source.packets)
    pieces = [everything[at : at + size] for at in range(0, len(everything), size)]
    gaps = set()
    for kind, at in faults:
        at %= len(pieces)
        if kind == "missing" and len(pieces) > 1:
            del pieces[at]
        elif kind == "flip" and pieces[at]:
            pieces[at] = bytes([pieces[at][0] ^ 0x41]) + pieces[at][1:]
        elif kind == "empty":
            pieces.insert(at, b"")
        else:
            gaps.add(at)
    records = [kit.record(i + sum(g <= i for g in gaps), piece) for i, piece in enumerate(pieces)]
    made = kit.decoder(source, framing="bytestream", on_damage="deliver" if deliver else "drop")
    outcomes = kit.run(made, records)
    keys = [(o.picture.identity.offset, o.picture.identity.sub) for o in outcomes if o.picture]
    assert len(keys) == len(set(keys))


def test_a_packet_without_a_number_among_numbered_ones_is_not_trusted(kit):
    source = kit.stream("vp9")
    records = kit.stamp_all(source)
    records[9:9] = [kit.record(9, source.packets[20])]
    records = [replace(one, offset=i) for i, one in enumerate(records)]
    made = kit.decoder(source)
    outcomes = kit.run(made, records)
    assert made.damage["sequence"] == 1
    assert check_pixels(kit, source, outcomes, lambda p: p.identity.offset - (p.identity.offset > 9)) == 9 + 30
