/* work.h - what the C programs of this folder do with a ring, without Python: put, take, read, and values that prove themselves.
 *
 * The core returns CX_WAIT where the binding would leave the interpreter and sleep; here the sleep is all there is.
 */
#ifndef WORK_H
#define WORK_H

#include "core.h"
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VALUE_MIN 24
#define VALUE_MAX 600

#define MUST(condition, ...)                                               \
    do {                                                                   \
        if (!(condition)) {                                                \
            fprintf(stderr, "%s:%d: " #condition ": ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__);                                  \
            fprintf(stderr, " (%s)\n", cx_error_text());                   \
            abort();                                                       \
        }                                                                  \
    } while (0)

static inline uint32_t next_random(uint64_t *state) /* xorshift64* */
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * 0x2545f4914f6cdd1dull) >> 32);
}

/* A value of n bytes that depends on seq in every byte: seq, n, crc of the rest. */
static inline void value_make(uint8_t *out, uint64_t seq, uint32_t n)
{
    for (uint32_t i = 16; i < n; i++) out[i] = (uint8_t)(seq * 31 + i);
    uint32_t crc = cx_crc32(out + 16, n - 16);
    memcpy(out, &seq, 8);
    memcpy(out + 8, &n, 4);
    memcpy(out + 12, &crc, 4);
}

/* Its sequence number, or UINT64_MAX where a byte is wrong. */
static inline uint64_t value_read(const uint8_t *value, uint64_t n)
{
    uint64_t seq;
    uint32_t said, crc;
    if (n < VALUE_MIN) return UINT64_MAX;
    memcpy(&seq, value, 8);
    memcpy(&said, value + 8, 4);
    memcpy(&crc, value + 12, 4);
    return said == n && crc == cx_crc32(value + 16, (size_t)n - 16) ? seq : UINT64_MAX;
}

static inline void work_sleep(cx_att *a, cx_wait *w)
{
    if (cx_futex_wait(w->addr, w->value, w->max_ns) == ETIMEDOUT) cx_wait_expired(a, w, 1);
}

/* CX_OK with the offset, CX_DROPPED, or an error; waits for room until `deadline` (monotonic nanoseconds; 0: not at all). */
static inline int work_put(cx_producer *p, const uint8_t *value, uint32_t n, int64_t deadline, bool give_up, uint64_t *offset)
{
    cx_att *a = p->a;
    cx_wait w = {0};
    cx_slot slot;
    uint64_t size = CX_ROUND8(n);
    for (;;) {
        int rc = cx_claim(p, 1, &size, &w, deadline && cx_now_ns() < deadline, deadline, &slot);
        if (rc == CX_OK) break;
        if (rc != CX_WAIT) {
            cx_claim_leave(p, &w);
            return rc;
        }
        work_sleep(a, &w);
    }
    cx_desc *d = cx_desc_at(a, slot.offset);
    cx_meta m = {.val_len = n, .bits = CX_BIT_VALUE};
    *offset = slot.offset;
    cx_describe(d, &m);
    memcpy(cx_value_at(a, d, a->rw), value, give_up ? n / 2 : n);
    if (give_up) {
        cx_abort(p, slot.offset, 1);
        return CX_NONE;
    }
    return cx_commit(p, slot.offset, 1, n, 0);
}

/* Joins a group, declaring it where it is new: from the beginning, records are delivered as often as it takes. */
static inline int work_join(cx_att *a, const char *group, bool durable, bool stop_at_end, cx_member *m)
{
    cx_terms terms = {.start_kind = CX_START_BEGINNING, .durable = durable};
    return cx_member_open(a, group, &terms, stop_at_end, "member", m);
}

/* CX_OK with the offset of a started record, CX_NONE after `deadline`, CX_END, or an error. */
static inline int work_take(cx_member *m, int64_t deadline, uint64_t *offset)
{
    cx_wait w = {0};
    uint64_t first, n;
    for (;;) {
        while (m->r0 < m->r1) {
            *offset = m->r0++;
            if (cx_start(m, *offset)) return CX_OK;
        }
        int rc = cx_take(m, 1, false, &w, deadline && cx_now_ns() < deadline, deadline, &first, &n);
        if (rc == CX_OK) continue;
        if (rc == CX_SPENT) { /* delivered too often, by what the group's terms say: a program would put it with the dead letters first */
            if (cx_bury(m, first) < 0) return CX_NONE;
            continue;
        }
        if (rc != CX_WAIT) {
            cx_take_leave(m, &w);
            return rc;
        }
        work_sleep(m->a, &w);
    }
}

#endif
