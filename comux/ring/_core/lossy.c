/* lossy.c - readers and observers: no lock, never in anybody's way, told exactly what they missed.
 *
 * A reader owns nothing but its cursor. Reading offset o:
 *   tail (acquire), then published (acquire): in the other order a reader that was lapped in between would trust a stale bound;
 *   cursor < tail: lapped; the aborted records in between are not losses (every descriptor knows how many were aborted below it);
 *   cursor < published: word (acquire), copy the descriptor, acquire fence, tail again: unchanged or at most o means the copy is whole.
 * The payload is looked at in place or copied and believed only after the same test (cx_valid). The writer's side of the bargain is in
 * produce.c: the new tail is visible before anything below it is overwritten.
 */
#include "core.h"
#include <string.h>

bool cx_valid(const cx_att *a, uint64_t offset)
{
    FENCE_ACQ(); /* SYNC reclaim (acquire) */
    return LD(a->ctl->tail) <= offset;
}

/* Whether every address computed from the descriptor of a committed record lies inside of its claim and the data region, and its seal is whole. */
bool cx_desc_sane(const cx_att *a, const cx_desc *d)
{
    if (CX_UNLIKELY(d->bits != cx_desc_seal(d))) return false;
    uint64_t aux = (uint64_t)d->key_len + d->hdr_len;
    if (a->fixed) return aux <= CX_FIXED_AUX && d->val_len <= a->stride && d->pos % a->stride == 0 && (!a->pool || d->pos < a->c);
    return d->claim_len <= a->c && CX_ROUND8(d->val_len) + aux <= d->claim_len && d->pos % 64 == 0;
}

/* Aborted records below `offset`, tail <= offset <= published at the time of the call; false where it was lapped meanwhile. */
static bool aborted_below(const cx_att *a, uint64_t offset, uint32_t *out)
{
    *out = 0;
    if (a->one_writer || offset == a->super.first_offset) return true;
    if (offset < LDA(a->ctl->published)) {
        const cx_desc *d = cx_desc_at(a, offset);
        *out = LD(d->cum_aborted);
        return cx_valid(a, offset);
    }
    uint64_t below = LDA(a->ctl->aborted_below); /* SYNC aborted (acquire) */
    if ((uint32_t)(below >> 32) == (uint32_t)offset) {
        *out = (uint32_t)below;
        return true;
    }
    /* Between the store of `published` and that of `aborted_below`: no claim was made since, so the descriptor before is still there. */
    const cx_desc *d = cx_desc_at(a, offset - 1);
    uint64_t word = LDA(d->word);
    *out = LD(d->cum_aborted) + ((word & 7) == CX_ABORTED);
    FENCE_ACQ(); /* SYNC count (acquire) */
    return word >> 3 == offset - 1 && LD(d->word) == word;
}

static int corrupt(const cx_att *a, uint64_t offset)
{
    return cx_fail(CX_ECORRUPT, "topic '%s': the descriptor of offset %llu contradicts itself; run check(), recreate the topic", a->super.name,
                   (unsigned long long)offset);
}

/* CX_OK with a validated copy of the descriptor; CX_NONE where the offset is not retained, not published or was aborted. */
int cx_peek(const cx_att *a, uint64_t offset, cx_view *out)
{
    uint64_t tail = LDA(a->ctl->tail);
    if (offset < tail || offset >= LDA(a->ctl->published)) return CX_NONE;
    const cx_desc *d = cx_desc_at(a, offset);
    uint64_t word = LDA(d->word);
    memcpy(&out->d, d, sizeof out->d);
    if (!cx_valid(a, offset)) return CX_NONE;
    if (word == CX_D_WORD(offset, CX_ABORTED)) return CX_NONE;
    if (word != CX_D_WORD(offset, CX_COMMITTED) || !cx_desc_sane(a, &out->d)) return corrupt(a, offset);
    out->offset = offset;
    out->skipped = 0;
    return CX_OK;
}

int cx_latest(const cx_att *a, cx_view *out)
{
    for (;;) {
        uint64_t published = LDA(a->ctl->published), o = published;
        while (o > LDA(a->ctl->tail)) {
            int rc = cx_peek(a, --o, out);
            if (rc != CX_NONE) return rc;
        }
        if (LDA(a->ctl->published) == published) return CX_NONE; /* nothing retained, or tombstones only */
    }
}

uint64_t cx_find_flag(const cx_att *a, uint16_t flag, uint64_t after)
{
    cx_view v;
    uint64_t published = LDA(a->ctl->published), hint = LD(a->ctl->last_key_plus1);
    if (flag == 1 && hint && hint <= published) { /* the newest keyframe is known; the descriptor confirms it */
        hint--;
        if (hint < after) return CX_NOWHERE;
        if (cx_peek(a, hint, &v) == CX_OK && (v.d.flags & 1)) return hint;
    }
    for (uint64_t o = published; o > after && o > LDA(a->ctl->tail);)
        if (cx_peek(a, --o, &v) == CX_OK && (v.d.flags & flag)) return o;
    return CX_NOWHERE;
}

uint64_t cx_find_time(const cx_att *a, int64_t ts_ns)
{
    cx_view v;
    uint64_t o = LDA(a->ctl->tail), published = LDA(a->ctl->published);
    for (; o < published; o++)
        if (cx_peek(a, o, &v) == CX_OK && v.d.ts_ns >= ts_ns) return o;
    return CX_NOWHERE;
}

/* -- readers ----------------------------------------------------------------------------------------------------------------------- */

static void missed(cx_reader *r, uint64_t to, uint32_t cum, uint64_t *counter)
{
    uint64_t span = to - r->cursor, aborted = cum - r->cum;
    if (aborted > span) aborted = 0;
    *counter += span - aborted;
    r->skip_pending += span - aborted;
    r->aborted += aborted;
    r->cursor = to;
    r->cum = cum;
}

static bool at_end(const cx_reader *r)
{
    const cx_att *a = r->a;
    uint64_t state = LDA(a->ctl->state);
    if (!r->stop_at_end || (cx_epoch(state) == r->epoch && !(state & CX_STATE_END))) return false;
    return r->cursor >= LDA(a->ctl->end_offset) && r->cursor >= LDA(a->ctl->published);
}

static int nothing_yet(cx_reader *r, cx_wait *w, bool may_wait)
{
    cx_att *a = r->a;
    if (at_end(r)) return CX_END;
    if (!may_wait) return CX_NONE;
    if (w->registered) return CX_WAIT;
    w->addr = &a->ctl->pub_ec;
    w->value = __atomic_fetch_or(&a->ctl->pub_ec, 1u, __ATOMIC_ACQ_REL) | 1u; /* announce first, then test */
    FENCE(); /* SYNC sleepers (acquire) */
    w->registered = true;
    if (!w->max_ns) w->max_ns = (int64_t)a->super.heartbeat_ns;
    return CX_OK;
}

int cx_poll(cx_reader *r, cx_wait *w, bool may_wait, cx_view *out)
{
    cx_att *a = r->a;
    if (w->reap) cx_reap(a);
    w->reap = w->registered = false;
    for (;;) {
        if (r->closed) return cx_fail(CX_ECLOSED, "topic '%s': this reader was closed", a->super.name);
        if (CX_UNLIKELY(a->forked)) return cx_fail(CX_ECLOSED, "topic '%s': inherited through a fork; attach again", a->super.name);
        uint64_t tail = LDA(a->ctl->tail);           /* SYNC tail (acquire); first, see above */
        uint64_t published = LDA(a->ctl->published), o = r->cursor; /* SYNC published (acquire) */
        if (o < tail) {
            uint32_t cum;
            if (aborted_below(a, tail, &cum)) {
                missed(r, tail, cum, &r->lost);
                ST(a->ports[r->port].lost, r->lost);
            }
            continue;
        }
        if (o >= published) {
            int rc = nothing_yet(r, w, may_wait);
            if (rc != CX_OK) return rc;
            continue;
        }
        const cx_desc *d = cx_desc_at(a, o);
        uint64_t word = LDA(d->word); /* SYNC descriptor (acquire) */
        memcpy(&out->d, d, sizeof out->d);
        if (!cx_valid(a, o)) continue;
        if (word == CX_D_WORD(o, CX_ABORTED)) {
            r->cursor++;
            r->cum = out->d.cum_aborted + 1;
            r->aborted++;
            continue;
        }
        if (word != CX_D_WORD(o, CX_COMMITTED) || !cx_desc_sane(a, &out->d)) return corrupt(a, o);
        if (r->stop_at_end && cx_desc_epoch(a, &out->d) > r->epoch) return CX_END;
        r->cum = out->d.cum_aborted;
        r->cursor = o + 1;
        r->delivered++;
        out->offset = o;
        out->skipped = r->skip_pending;
        r->skip_pending = 0;
        cx_port *port = &a->ports[r->port];
        INC(port->n, 1);
        ST(port->last_offset, o);
        return CX_OK;
    }
}

/* Moves the cursor. Forward: what lies between counts as jumped. To before the log start: what is gone counts as lost. */
void cx_seek(cx_reader *r, uint64_t offset)
{
    cx_att *a = r->a;
    uint64_t tail = LDA(a->ctl->tail), published = LDA(a->ctl->published);
    uint32_t cum = r->cum;
    if (offset < r->cursor) {
        r->skip_pending = 0;
        r->cursor = offset;
        if (offset >= tail && aborted_below(a, offset, &cum)) r->cum = cum;
        return;
    }
    if (offset >= tail && offset <= published && !aborted_below(a, offset, &cum)) cum = r->cum;
    missed(r, offset, cum, &r->jumped);
}

int cx_reader_open(cx_att *a, int start_kind, uint64_t start, bool stop_at_end, const char *name, cx_reader *r)
{
    memset(r, 0, sizeof *r);
    r->a = a;
    r->stop_at_end = stop_at_end;
    cx_reap(a);
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    rc = cx_port_open(a, CX_PORT_READER, 0, name, &r->port);
    if (rc == CX_OK) {
        uint64_t tail = LD(a->ctl->tail);
        r->id = (uint32_t)a->ports[r->port].id;
        r->epoch = cx_epoch(LD(a->ctl->state));
        r->cursor = start_kind == CX_START_BEGINNING ? tail : start_kind == CX_START_END ? LDA(a->ctl->published) : start;
        /* Started below the log start: how many of those were aborted is not known any more, all count as lost. */
        aborted_below(a, r->cursor < tail ? tail : r->cursor <= LDA(a->ctl->published) ? r->cursor : LDA(a->ctl->published), &r->cum);
    }
    cx_unlock(a);
    if (rc == CX_OK) cx_populate(a, false);
    return rc;
}

void cx_reader_wake(cx_reader *r)
{
    r->wakes++;
    if (r->a->forked) return;
    FENCE();
    cx_signal_readers(r->a);
}

void cx_reader_close(cx_reader *r)
{
    cx_att *a = r->a;
    r->closed = true;
    if (a->forked || cx_lock(a, CX_GIVE_UP) != CX_OK) return;
    cx_port_fold(a, r->port);
    cx_unlock(a);
    cx_signal_readers(a);
}
