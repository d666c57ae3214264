/* damaged.h - a small topic with something of everything in it, and a process that uses it whatever was done to its bytes.
 *
 * What may happen: any call may fail with a code and a text; records may be missing or come again. What may not: a crash, a hang (the caller
 * sets an alarm), or a record whose fields or value are not what was put at its offset: `use` aborts then.
 */
#ifndef DAMAGED_H
#define DAMAGED_H

#include "work.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORDS 11
#define SLOTS 8
#define ITEM 64

typedef struct {
    char path[300];
    uint8_t *bytes;
    size_t size, meta; /* of the file; of everything before the padding in front of the data */
    cx_desc put[RECORDS];
    bool fixed, loose; /* loose: anything may have been changed, so no record is vouched for */
    uint64_t vouched;  /* records from here on may be others: the damage reads as a reset that was begun, or as records not published yet */
} topic;

static uint64_t records_seen; /* a harness that never sees one tests nothing */

static inline void topic_put(cx_producer *p, topic *t, uint64_t seq)
{
    cx_att *a = p->a;
    uint8_t value[200];
    uint32_t n = t->fixed ? ITEM : 40 + (uint32_t)seq * 13;
    uint64_t size = CX_ROUND8(n) + (t->fixed ? 0 : 8 + 13);
    cx_wait w = {0};
    cx_slot slot;
    value_make(value, seq, n);
    MUST(cx_claim(p, 1, &size, &w, false, 0, &slot) == CX_OK, "claim");
    cx_desc *d = cx_desc_at(a, slot.offset);
    cx_meta m = {.val_len = n, .bits = CX_BIT_VALUE, .tag = (int64_t)seq * 7, .flags = seq == 7, .has_ts = seq % 2, .ts_ns = 1000 + (int64_t)seq};
    if (!t->fixed) { /* keys and headers of variable records lie with the value */
        static const uint8_t header[13] = {4, 0, 0, 0, 1, 0, 0, 0, 'n', 'a', 'm', 'e', 'v'};
        m.key_len = 8;
        m.hdr_len = sizeof header;
        m.n_headers = 1;
        m.bits |= CX_BIT_KEY;
        memcpy(a->rw + cx_phys(a, d->pos) + CX_ROUND8(n), "the key:", 8);
        memcpy(a->rw + cx_phys(a, d->pos) + CX_ROUND8(n) + 8, header, sizeof header);
    }
    cx_describe(d, &m);
    memcpy(cx_value_at(a, d, a->rw), value, n);
    MUST(cx_commit(p, slot.offset, 1, n, m.flags & 1 ? slot.offset + 1 : 0) == CX_OK, "commit");
    t->put[slot.offset] = *d;
}

/* Eleven records in eight slots; group g has finished five and holds one, a producer and a reader are open; all of a process that is gone. */
static inline void topic_make(topic *t, const char *place, bool fixed, bool one_writer)
{
    cx_config k = {.name = "damaged", .spec = "{}", .n = SLOTS, .data_bytes = 65536, .item_bytes = ITEM, .kind = fixed ? CX_FIXED : CX_VARIABLE,
                   .options = one_writer ? CX_OPT_ONE_WRITER : 0, .max_procs = 4, .max_ports = 8, .max_groups = 2, .mode = 0600,
                   .heartbeat_ns = 100000000, .group_grace_ns = 10000000000ull};
    cx_att *a;
    cx_producer p;
    cx_member m;
    cx_reader r;
    uint64_t offset;
    struct stat st;
    memset(t, 0, sizeof *t);
    t->vouched = RECORDS;
    t->fixed = fixed;
    snprintf(t->path, sizeof t->path, "%s/damaged-%d.ring", place, (int)getpid());
    k.path = t->path;
    MUST(cx_create(&k, &a) == CX_OK, "creating");
    MUST(work_join(a, "g", true, false, &m) == CX_OK, "member");
    MUST(cx_reader_open(a, CX_START_BEGINNING, 0, false, "reader", &r) == CX_OK, "reader");
    MUST(cx_producer_open(a, "producer", &p) == CX_OK, "producer");
    for (uint64_t i = 0; i < RECORDS; i++) {
        topic_put(&p, t, i);
        if (i < 5) {
            MUST(work_take(&m, 0, &offset) == CX_OK, "take");
            MUST(cx_ack(&m, offset, 1, 0) == CX_OK, "ack");
        }
    }
    MUST(work_take(&m, 0, &offset) == CX_OK, "hold");
    int fd = open(t->path, O_RDONLY);
    MUST(fd >= 0 && fstat(fd, &st) == 0, "reading");
    t->size = (size_t)st.st_size;
    t->meta = a->super.off_desc + a->super.n_desc * a->super.desc_stride;
    t->bytes = malloc(t->size);
    MUST(t->bytes && pread(fd, t->bytes, t->size, 0) == (ssize_t)t->size, "reading");
    close(fd);
    cx_producer_close(&p, false);
    cx_member_close(&m);
    cx_reader_close(&r);
    cx_detach(a);
    cx_unmap(a);
    MUST(cx_unlink(t->path, false) == CX_OK, "removing");
}

/* The file as it was, once more; the caller damages it then. Written in place: a mapping of the last one is gone by now. */
static inline int topic_restore(const topic *t)
{
    int fd = open(t->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    MUST(fd >= 0 && ftruncate(fd, (off_t)t->size) == 0, "writing");
    MUST(pwrite(fd, t->bytes, t->size, 0) == (ssize_t)t->size, "writing");
    return fd;
}

static inline void compare(const topic *t, const cx_att *a, uint64_t offset, const cx_desc *d, const uint8_t *value)
{
    const cx_desc *put = &t->put[offset < RECORDS ? offset : 0];
    if (t->loose) {
        records_seen++;
        return;
    }
    if (offset >= t->vouched) { /* what this very process has put since */
        MUST(value_read(value, d->val_len) != UINT64_MAX, "offset %llu is no record at all", (unsigned long long)offset);
        return;
    }
    MUST(d->pos == put->pos && d->ts_ns == put->ts_ns && d->tag == put->tag && d->val_len == put->val_len && d->hdr_len == put->hdr_len &&
             d->key_len == put->key_len && d->n_headers == put->n_headers && d->flags == put->flags && (d->bits & CX_BITS) == (put->bits & CX_BITS) &&
             d->producer == put->producer && d->epoch == put->epoch && (!(d->bits & CX_BIT_APPEND) || d->append_ns == put->append_ns),
         "the descriptor of offset %llu is another one", (unsigned long long)offset);
    MUST(value_read(value, d->val_len) == offset, "offset %llu has another value", (unsigned long long)offset);
    if (!t->fixed) MUST(memcmp(value + CX_ROUND8(d->val_len), "the key:", 8) == 0, "offset %llu has another key", (unsigned long long)offset);
    (void)a;
    records_seen++;
}

static inline void use_views(const topic *t, cx_att *a)
{
    cx_view v;
    cx_reader r;
    for (uint64_t o = 0; o < RECORDS + 2; o++)
        if (cx_peek(a, o, &v) == CX_OK) compare(t, a, o, &v.d, cx_value_at(a, &v.d, a->ro));
    if (cx_latest(a, &v) == CX_OK) compare(t, a, v.offset, &v.d, cx_value_at(a, &v.d, a->ro));
    cx_find_flag(a, 1, 0);
    cx_find_time(a, 1005);
    if (cx_reader_open(a, CX_START_BEGINNING, 0, true, "r", &r) != CX_OK) return;
    for (int i = 0; i < 2 * SLOTS; i++) {
        cx_wait w = {0};
        if (cx_poll(&r, &w, false, &v) != CX_OK) break;
        compare(t, a, v.offset, &v.d, cx_value_at(a, &v.d, a->ro));
    }
    cx_reader_close(&r);
}

static inline void use_group(const topic *t, cx_att *a, const char *group)
{
    cx_member m;
    uint64_t offset;
    if (work_join(a, group, false, true, &m) != CX_OK) return;
    for (int i = 0; i < 3 * SLOTS && work_take(&m, 0, &offset) == CX_OK; i++) {
        cx_desc d = *cx_desc_at(a, offset);
        if (d.word == CX_D_WORD(offset, CX_COMMITTED) && cx_desc_sane(a, &d)) compare(t, a, offset, &d, cx_value_at(a, &d, a->ro)); /* as a lease does */
        if (i % 4 == 3)
            cx_nack(&m, offset, 1, 0);
        else
            cx_ack(&m, offset, 1, 0);
    }
    cx_member_close(&m);
}

static inline void use_producer(cx_att *a)
{
    cx_producer p;
    uint8_t value[ITEM];
    uint64_t offset;
    if (cx_producer_open(a, "p", &p) != CX_OK) return;
    for (uint64_t i = 0; i < SLOTS; i++) {
        value_make(value, 100 + i, ITEM);
        if (work_put(&p, value, ITEM, 0, i == 3, &offset) < 0) break;
    }
    cx_producer_end(&p);
    cx_producer_close(&p, true);
}

/* Everything a program does with a topic, without waiting for anybody. True where it could be attached to. */
static inline bool use(const topic *t)
{
    char text[4096];
    cx_att *a;
    int rc = cx_attach(t->path, &a);
    if (rc != CX_OK) {
        MUST(cx_error_text()[0] && !strchr(cx_error_text(), '\n'), "an error of one line is wanted, code %d", rc);
        return false;
    }
    cx_check(a, text, sizeof text);
    cx_reap(a);
    use_views(t, a);
    use_group(t, a, "g");
    use_producer(a);
    use_group(t, a, "new");
    cx_group_remove(a, "new");
    use_views(t, a);
    cx_check(a, text, sizeof text);
    cx_detach(a);
    cx_unmap(a);
    return true;
}

#endif
