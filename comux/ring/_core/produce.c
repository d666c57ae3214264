/* produce.c - claim, commit, abort; and the one writer that publishes without the lock.
 *
 * Several writers. Claim, under the lock: make room, write the descriptor as CLAIMED, move head. The payload is filled outside of the lock.
 * Commit, under the lock: the word becomes COMMITTED, `published` moves over everything no longer CLAIMED. Records become visible in
 * offset order, so a slow claim holds back later ones; a dead one is found and becomes a tombstone.
 *
 * One writer. Nothing needs the lock but room: head is published, claims are private until the exchange of `published`, so there are no
 * CLAIMED words and no tombstones. Room is reserved under the lock in chunks: tail moves ahead of need (room.c), limit = tail + N.
 *
 * A crash after          leaves                                  and then
 *   claim: tail          less history                            nothing to do
 *   claim: word          a claim at or above head                does not exist; overwritten
 *   claim: head          a claim of a dead port                  becomes a tombstone
 *   filling              the same
 *   commit: word         committed, not visible                  whoever locks next publishes it
 *   commit: published    the record exists, sleepers not woken   heartbeat, or the next commit
 *   one writer: word     offset >= published                     does not exist; the next writer overwrites it
 */
#include "core.h"
#include <stdio.h>
#include <string.h>

#define REAP_EVERY_NS 10000000
#define POOL_RUN_BYTES 262144 /* pool: the one writer goes on this far before it looks again at what is finished */

/* -- claim ----------------------------------------------------------------------------------------------------------------------- */

static void stand_in_line(cx_producer *p, const cx_demand *w, cx_wait *t, cx_wakes *wakes)
{
    cx_att *a = p->a;
    cx_control *c = a->ctl;
    bool paused = cx_topic_paused(a); /* then it waits for cx_pause_topic, and for no room */
    uint64_t want = paused ? CX_NOWHERE : cx_wanted(a, w, t->phase == 0);
    ST(c->space_nwait, LD(c->space_nwait) + 1);
    INC(a->ports[p->port].waiting, 1);
    if (want < LD(c->space_want)) ST(c->space_want, want);
    t->addr = &c->space_ec;
    t->value = LD(c->space_ec);
    t->max_ns = t->phase == 0 && !paused ? 1000000 : (int64_t)a->super.heartbeat_ns;
    if (!t->since_ns) {
        t->since_ns = cx_now_ns();
        ST(a->ports[p->port].blocked_since, (uint64_t)t->since_ns);
    }
    t->registered = true;
    FAILPOINT("wait.space_registered");
    if (!paused) cx_signal_space(a, wakes); /* places the holes; where enough is free by now it has bumped the count and the sleep returns at once */
}

static void leave_line(cx_producer *p, cx_wait *t)
{
    cx_control *c = p->a->ctl;
    if (!t->registered) return;
    t->registered = false;
    if (p->closed) return; /* close() has taken this handle's waiters off the count */
    if (LD(c->space_nwait)) ST(c->space_nwait, LD(c->space_nwait) - 1);
    cx_port *port = &p->a->ports[p->port];
    if (LD(port->waiting)) ST(port->waiting, LD(port->waiting) - 1);
    if (!LD(c->space_nwait)) ST(c->space_want, CX_NOWHERE);
}

static void waited(cx_producer *p, cx_wait *t)
{
    if (!t->since_ns) return;
    cx_port *port = &p->a->ports[p->port];
    INC(port->blocked_ns, (uint64_t)(cx_now_ns() - t->since_ns));
    ST(port->blocked_since, 0);
    t->since_ns = 0;
}

void cx_claim_leave(cx_producer *p, cx_wait *t)
{
    if (p->a->forked) return;
    if (t->registered && cx_lock(p->a, CX_NO_DEADLINE) == CX_OK) {
        leave_line(p, t);
        cx_unlock(p->a);
    }
    waited(p, t);
}

static void describe_claim(cx_producer *p, uint64_t offset, uint64_t pos, uint64_t len)
{
    cx_desc *d = cx_desc_at(p->a, offset);
    d->pos = pos;
    d->claim_len = (uint32_t)len;
    d->port = (uint16_t)p->port;
    d->producer = p->id;
    d->epoch = (uint16_t)p->epoch;
    d->bits = 0; /* with CX_BIT_APPEND: claimed when, see claim_open */
    /* cum_aborted stays what it was until the record is published: a lossy reader may still want it (lossy.c aborted_below) */
}

static inline uint64_t claim_bytes(const cx_att *a, const uint64_t *sizes, uint64_t i) { return a->fixed ? a->stride : CX_ROUND64(sizes[i]); }

static int take_claim(cx_producer *p, const cx_demand *w, const uint64_t *sizes, cx_slot *out)
{
    cx_att *a = p->a;
    uint64_t pos = w->data_head;
    out->offset = w->head;
    out->claim_len = claim_bytes(a, sizes, 0);
    for (uint64_t i = 0; i < w->n; i++) {
        uint64_t len = claim_bytes(a, sizes, i);
        if (a->pool && cx_pool_take(a, &pos) != CX_OK) return CX_ECORRUPT;
        describe_claim(p, w->head + i, pos, len);
        pos += len;
        if (!a->one_writer) STR(cx_desc_at(a, w->head + i)->word, CX_D_WORD(w->head + i, CX_CLAIMED));
    }
    if (a->one_writer) return CX_OK;
    FAILPOINT("claim.before_head");
    STR(a->ctl->head, w->head + w->n);
    FAILPOINT("claim.after_head");
    ST(a->ctl->data_head, pos);
    return CX_OK;
}

/* Lock held. How far the one writer may go without it. */
static void set_limit(cx_producer *p, const cx_demand *w)
{
    cx_att *a = p->a;
    uint64_t tail = LD(a->ctl->tail), run = POOL_RUN_BYTES / (a->stride ? a->stride : 1);
    p->limit = tail + a->n;
    p->data_limit = cx_pos_of(a, w, tail) + a->c;
    if (a->pool && p->limit > w->head + w->n + run) p->limit = w->head + w->n + run;
}

static int check_open(const cx_producer *p)
{
    uint64_t state = LD(p->a->ctl->state);
    if (p->closed) return cx_fail(CX_ECLOSED, "topic '%s': this producer was closed", p->a->super.name);
    if (p->ended || (state & CX_STATE_END) || cx_epoch(state) != p->epoch)
        return cx_fail(CX_EENDED, "topic '%s': epoch %u was ended; open a new producer for the next one", p->a->super.name, p->epoch);
    return CX_OK;
}

static int refuse(cx_producer *p, uint64_t n, uint64_t bytes)
{
    const cx_att *a = p->a;
    if (n > a->n)
        return cx_fail(CX_ETOOBIG, "topic '%s': %llu records at once, the ring holds %llu; raise slots", a->super.name, (unsigned long long)n, (unsigned long long)a->n);
    return cx_fail(CX_ETOOBIG, "topic '%s': %llu bytes, the limit is %llu; raise max_record or data_bytes", a->super.name, (unsigned long long)bytes,
                   (unsigned long long)(n == 1 ? a->super.max_record : a->c));
}

/* Lock held: the decision. */
static int claim_locked(cx_producer *p, cx_demand *w, const uint64_t *sizes, cx_wait *t, bool may_wait, cx_slot *out, cx_wakes *wakes)
{
    cx_att *a = p->a;
    leave_line(p, t);
    int rc = check_open(p);
    if (rc != CX_OK) return rc;
    w->head = cx_head(a);
    w->data_head = a->one_writer ? p->data_head : LD(a->ctl->data_head);
    bool paused = cx_topic_paused(a);
    if (!paused && cx_make_room(a, w)) {
        if (a->one_writer) set_limit(p, w);
        return take_claim(p, w, sizes, out);
    }
    int64_t now = cx_now_ns();
    if (!paused && now - p->reaped_ns > REAP_EVERY_NS) {
        p->reaped_ns = now;
        return CX_NONE; /* look for the dead first, then decide again */
    }
    if (a->super.policy == CX_POLICY_DROP_NEWEST || (paused && a->super.policy == CX_POLICY_DROP_OLDEST)) {
        INC(a->ports[p->port].dropped, w->n);
        return CX_DROPPED;
    }
    if (!may_wait && paused) return cx_fail(CX_ETIMEOUT, "topic '%s' is paused; resume it, or wait longer", a->super.name);
    if (!may_wait)
        return cx_fail(CX_ETIMEOUT, "topic '%s' is full: %llu of %llu slots are kept for groups that have not finished; read faster, raise slots, or wait longer",
                       a->super.name, (unsigned long long)(w->head - LD(a->ctl->tail)), (unsigned long long)a->n);
    stand_in_line(p, w, t, wakes);
    return CX_WAIT;
}

int cx_claim(cx_producer *p, uint64_t n, const uint64_t *sizes, cx_wait *t, bool may_wait, int64_t deadline, cx_slot *out)
{
    cx_att *a = p->a;
    cx_demand w = {n, 0, 0, 0};
    if (n > a->n) return refuse(p, n, 0);
    if (a->fixed)
        w.bytes = n * a->stride;
    else
        for (uint64_t i = 0; i < n; i++) {
            if (CX_UNLIKELY(sizes[i] > a->super.max_record)) return refuse(p, 1, sizes[i]);
            w.bytes += CX_ROUND64(sizes[i]);
        }
    if (CX_UNLIKELY(w.bytes > a->c)) return refuse(p, n, w.bytes);
    if (a->one_writer && CX_LIKELY(p->head + n <= p->limit && (a->fixed || p->data_head + w.bytes <= p->data_limit) && !p->closed && !p->ended && !cx_topic_paused(a))) {
        w.head = p->head;
        w.data_head = p->data_head;
        return take_claim(p, &w, sizes, out); /* the fast path: nothing shared is touched but the writer's own descriptor */
    }
    for (;;) {
        cx_wakes wakes;
        cx_wakes_init(&wakes);
        if (t->reap) cx_reap(a);
        t->reap = false;
        int rc = cx_lock(a, deadline);
        if (rc != CX_OK) return rc;
        rc = claim_locked(p, &w, sizes, t, may_wait, out, &wakes);
        cx_unlock(a);
        cx_wakes_run(a, &wakes);
        if (rc == CX_NONE) {
            t->reap = true;
            continue;
        }
        if (rc != CX_WAIT) waited(p, t);
        return rc;
    }
}

void cx_describe(cx_desc *d, const cx_meta *m)
{
    d->val_len = (uint32_t)m->val_len;
    d->hdr_len = (uint32_t)m->hdr_len;
    d->key_len = (uint16_t)m->key_len;
    d->n_headers = m->n_headers;
    d->flags = m->flags;
    d->tag = m->tag;
    int64_t now = cx_wall_ns();
    d->bits = m->bits;
    d->ts_ns = now;
    if (m->has_ts) {
        d->ts_ns = m->ts_ns;
        d->append_ns = now;
        d->bits |= CX_BIT_APPEND;
    }
}

/* -- commit and abort ------------------------------------------------------------------------------------------------------------ */

/* ts_ns: the last record's, read while it was still ours: once it is published it may be overwritten. */
static void count_published(cx_producer *p, uint64_t offset, uint64_t n, uint64_t bytes, int64_t ts_ns)
{
    cx_port *port = &p->a->ports[p->port];
    INC(port->n, n);
    INC(port->bytes, bytes);
    ST(port->last_offset, offset + n - 1);
    ST(port->last_ns, (uint64_t)ts_ns);
}

static void signal_slow(cx_att *a)
{
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (cx_lock(a, CX_GIVE_UP) != CX_OK) return; /* their heartbeat finds the record */
    cx_signal_published(a, &wakes);
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
}

static int commit_one_writer(cx_producer *p, uint64_t offset, uint64_t n, uint64_t last_key_plus1)
{
    cx_att *a = p->a;
    cx_control *c = a->ctl;
    for (uint64_t i = 0; i < n; i++) {
        cx_desc *d = cx_desc_at(a, offset + i);
        d->bits = cx_desc_seal(d);
        STR(d->word, CX_D_WORD(offset + i, CX_COMMITTED)); /* SYNC descriptor (release) */
    }
    const cx_desc *last = cx_desc_at(a, offset + n - 1);
    p->data_head = a->fixed ? last->pos + a->stride : last->pos + last->claim_len;
    p->head = offset + n;
    if (last_key_plus1) ST(c->last_key_plus1, last_key_plus1);
    FAILPOINT("publish.before");
    XCHG(c->published, offset + n); /* the commit. SYNC published (release), SYNC wake-min (release), SYNC sleepers (release) */
    FAILPOINT("publish.after");
    if (CX_UNLIKELY(offset + n >= LDS(c->wake_min))) signal_slow(a);
    if (CX_UNLIKELY(LDS(c->pub_ec) & 1)) cx_signal_readers(a);
    return CX_OK;
}

static bool still_claimed(const cx_producer *p, uint64_t offset)
{
    const cx_desc *d = cx_desc_at(p->a, offset);
    return LD(d->word) == CX_D_WORD(offset, CX_CLAIMED) && d->port == p->port && d->producer == p->id;
}

int cx_commit(cx_producer *p, uint64_t offset, uint64_t n, uint64_t bytes, uint64_t last_key_plus1)
{
    cx_att *a = p->a;
    int64_t ts_ns = cx_desc_at(a, offset + n - 1)->ts_ns;
    if (a->one_writer) {
        commit_one_writer(p, offset, n, last_key_plus1);
        count_published(p, offset, n, bytes, ts_ns);
        return CX_OK;
    }
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    int rc = cx_lock(a, CX_NO_DEADLINE);
    if (rc != CX_OK) return rc;
    if (!still_claimed(p, offset)) {
        cx_unlock(a);
        return cx_fail(CX_ESTALE, "topic '%s': offset %llu is no longer claimed by this producer; nothing was published", a->super.name,
                       (unsigned long long)offset);
    }
    FAILPOINT("commit.before_word");
    for (uint64_t i = 0; i < n; i++) {
        cx_desc *d = cx_desc_at(a, offset + i);
        d->bits = cx_desc_seal(d);
        STR(d->word, CX_D_WORD(offset + i, CX_COMMITTED));
        FAILPOINT("commit.after_word");
    }
    bool moved = cx_advance_published(a);
    if (moved) cx_signal_published(a, &wakes);
    if (moved && LD(a->ctl->space_nwait)) cx_signal_space(a, &wakes);
    cx_unlock(a);
    FAILPOINT("commit.after_unlock");
    if (cx_wakes_any(&wakes)) cx_wakes_run(a, &wakes);
    if (CX_UNLIKELY(LDS(a->ctl->pub_ec) & 1)) cx_signal_readers(a);
    count_published(p, offset, n, bytes, ts_ns);
    return CX_OK;
}

/* Gives back what a claim did not use, as far as nobody claimed behind it. */
int cx_trim(cx_producer *p, uint64_t offset, uint64_t used)
{
    cx_att *a = p->a;
    cx_desc *d = cx_desc_at(a, offset);
    if (a->fixed || CX_ROUND64(used) >= d->claim_len) return CX_OK;
    if (a->one_writer) {
        d->claim_len = (uint32_t)CX_ROUND64(used);
        return CX_OK;
    }
    int rc = cx_lock(a, CX_NO_DEADLINE);
    if (rc != CX_OK) return rc;
    if (still_claimed(p, offset) && LD(a->ctl->head) == offset + 1) {
        d->claim_len = (uint32_t)CX_ROUND64(used);
        FAILPOINT("commit.trim");
        ST(a->ctl->data_head, d->pos + d->claim_len);
    }
    cx_unlock(a);
    return CX_OK;
}

void cx_abort(cx_producer *p, uint64_t offset, uint64_t n)
{
    cx_att *a = p->a;
    if (a->forked) return;
    if (a->one_writer) { /* the claim was private: it never existed */
        for (uint64_t i = 0; a->pool && i < n; i++) cx_pool_put_back(a, cx_desc_at(a, offset + i)->pos);
        INC(a->ports[p->port].aborted, n);
        return;
    }
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (cx_lock(a, CX_NO_DEADLINE) != CX_OK) return;
    for (uint64_t i = 0; i < n; i++) {
        if (!still_claimed(p, offset + i)) continue;
        INC(a->ctl->aborted, 1);
        STR(cx_desc_at(a, offset + i)->word, CX_D_WORD(offset + i, CX_ABORTED));
        FAILPOINT("abort.after_word");
    }
    if (cx_advance_published(a)) {
        cx_signal_published(a, &wakes);
        cx_signal_space(a, &wakes);
    }
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
    cx_signal_readers(a);
}

/* -- open, end, close ------------------------------------------------------------------------------------------------------------ */

int cx_producer_open(cx_att *a, const char *name, cx_producer *p)
{
    memset(p, 0, sizeof *p);
    p->a = a;
    cx_reap(a);
    int rc = cx_lock(a, 0);
    if (rc != CX_OK) return rc;
    cx_control *c = a->ctl;
    uint32_t writer = LD(c->writer);
    if (a->one_writer && writer && writer <= a->super.max_ports && LD(a->ports[writer - 1].state) == CX_PORT_USED) {
        char who[96];
        cx_owner_text(a, a->ports[writer - 1].owner, who, sizeof who);
        cx_unlock(a);
        return cx_fail(CX_EBUSY, "topic '%s' has one writer and %s is it; close it there, or create the topic with writers='many'", a->super.name, who);
    }
    rc = cx_port_open(a, CX_PORT_PRODUCER, 0, name, &p->port);
    if (rc != CX_OK) {
        cx_unlock(a);
        return rc;
    }
    p->id = (uint32_t)a->ports[p->port].id;
    if (a->one_writer) ST(c->writer, p->port + 1);
    uint64_t state = LD(c->state);
    if (state & CX_STATE_END) {
        FAILPOINT("epoch.before");
        state = (uint64_t)(cx_epoch(state) + 1) << 32 | (state & CX_STATE_PAUSED);
        STR(c->state, state);
        FAILPOINT("epoch.after");
    }
    p->epoch = cx_epoch(state);
    p->head = cx_head(a);
    p->data_head = cx_data_end(a, p->head);
    if (a->pool && a->one_writer) cx_pool_rebuild(a);
    cx_unlock(a);
    cx_populate(a, true);
    return CX_OK;
}

static void end_locked(cx_producer *p, cx_wakes *wakes)
{
    cx_att *a = p->a;
    cx_control *c = a->ctl;
    uint64_t state = LD(c->state);
    if ((state & CX_STATE_END) || cx_epoch(state) != p->epoch) return;
    ST(c->end_offset, cx_head(a));
    FAILPOINT("end.before_flag");
    STR(c->state, state | CX_STATE_END);
    FENCE();
    FAILPOINT("end.after_flag");
    cx_signal_all(a, wakes);
}

int cx_producer_end(cx_producer *p)
{
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    int rc = cx_lock(p->a, 0);
    if (rc != CX_OK) return rc;
    end_locked(p, &wakes);
    p->ended = true;
    cx_unlock(p->a);
    cx_wakes_run(p->a, &wakes);
    return CX_OK;
}

static bool last_producer(const cx_att *a, uint32_t port)
{
    for (uint32_t i = 0; i < a->super.max_ports; i++)
        if (i != port && LD(a->ports[i].state) == CX_PORT_USED && a->ports[i].kind == CX_PORT_PRODUCER) return false;
    return true;
}

void cx_producer_close(cx_producer *p, bool clean)
{
    cx_att *a = p->a;
    p->closed = true;
    if (a->forked) return;
    cx_reap(a);
    cx_wakes wakes;
    cx_wakes_init(&wakes);
    if (cx_lock(a, CX_GIVE_UP) != CX_OK) return; /* the port is reaped when this process is gone */
    if (!a->one_writer) {
        for (uint64_t o = LD(a->ctl->published); o < LD(a->ctl->head); o++) {
            if (!still_claimed(p, o)) continue;
            INC(a->ctl->aborted, 1);
            STR(cx_desc_at(a, o)->word, CX_D_WORD(o, CX_ABORTED));
        }
        if (cx_advance_published(a)) cx_signal_published(a, &wakes);
    }
    FAILPOINT("close.before_end");
    if (clean && (a->super.options & CX_OPT_END_AUTO) && last_producer(a, p->port)) end_locked(p, &wakes);
    cx_port *port = &a->ports[p->port];
    uint32_t waiting = LD(port->waiting);
    ST(a->ctl->space_nwait, LD(a->ctl->space_nwait) > waiting ? LD(a->ctl->space_nwait) - waiting : 0);
    ST(port->waiting, 0);
    cx_port_fold(a, p->port);
    ST(a->ctl->space_ec, LD(a->ctl->space_ec) + 1); /* threads of this handle that wait for space see that it is closed */
    wakes.space = wakes.readers = true;
    cx_unlock(a);
    cx_wakes_run(a, &wakes);
}
