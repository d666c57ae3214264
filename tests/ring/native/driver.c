/* driver.c - the ring's core at work without Python: what the sanitizers watch.
 *
 *   driver threads   PLACE SECONDS SEED    threads of one process share an attachment
 *   driver processes PLACE SECONDS SEED    processes of their own, killed at random and replaced
 *
 * Both go through every policy, kind and number of writers. Producers put (and now and then give up), two members in each of two groups
 * acknowledge, a lossy reader and an observer read. Every value proves itself when it is taken and again when it is acknowledged; at the
 * end the books are compared: threads: every record once in each group, no more and no less than the ring says it dropped; processes: nothing
 * but whole values, every invariant holds, everything can be drained. Prints one line per kind of ring; anything wrong is an abort.
 *
 * A lossy reader's copy races with the writer by design, and is believed only when cx_valid says so; `lossy_copy` is a function of its own so
 * that ThreadSanitizer can be told about exactly that (tsan.supp).
 */
#define _GNU_SOURCE
#include "work.h"
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PRODUCERS 3
#define MEMBERS 4
#define OFFSETS (1u << 20)
#define SLICE_NS 50000000

typedef struct {
    cx_att *a;
    uint64_t seed;
    int number;
} role;

static const char *groups[] = {"red", "blue"};
static uint8_t *put_at;      /* threads: offset -> 1 where a put returned */
static uint8_t *acked_at[2]; /* threads: group, offset -> acknowledgements */
static int stop; /* 1: no more records; 2: and all that were made have been put */
static uint64_t n_put, n_acked, n_read, n_dropped;

static bool stopped(void) { return __atomic_load_n(&stop, __ATOMIC_RELAXED); }
static bool complete(void) { return __atomic_load_n(&stop, __ATOMIC_RELAXED) == 2; }
static void count(uint64_t *counter) { __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }

static void *producer(void *arg)
{
    role *r = arg;
    cx_producer p;
    uint8_t value[VALUE_MAX];
    uint64_t offset, seq = (uint64_t)r->number << 40;
    int rc;
    while ((rc = cx_producer_open(r->a, "driver", &p)) == CX_EBUSY && !stopped()) usleep(1000); /* the next in line where one may write */
    if (rc == CX_EBUSY) return NULL;
    MUST(rc == CX_OK, "opening a producer: %d", rc);
    while (!stopped()) {
        uint32_t n = r->a->fixed ? (uint32_t)r->a->super.item_bytes : VALUE_MIN + next_random(&r->seed) % (VALUE_MAX - VALUE_MIN);
        bool give_up = next_random(&r->seed) % 50 == 0;
        value_make(value, ++seq, n);
        rc = work_put(&p, value, n, cx_now_ns() + SLICE_NS, give_up, &offset);
        if (rc == CX_OK) {
            count(&n_put);
            if (!put_at) {
                if (offset % 64 == 0) usleep(100); /* nothing else holds it up where records are dropped: the others are to run too */
                continue;
            }
            MUST(offset < OFFSETS, "too many records");
            MUST(__atomic_exchange_n(&put_at[offset], 1, __ATOMIC_RELAXED) == 0, "offset %llu given twice", (unsigned long long)offset);
            if (offset + 8 * PRODUCERS > OFFSETS) break;
        } else {
            MUST(rc == CX_ETIMEOUT || rc == CX_DROPPED || rc == CX_NONE, "put: %d", rc);
            if (rc == CX_DROPPED) count(&n_dropped);
        }
    }
    cx_producer_close(&p, true);
    return NULL;
}

static void finish(cx_member *m, uint64_t offset, int group, uint64_t seq)
{
    const cx_desc *d = cx_desc_at(m->a, offset);
    MUST(value_read(cx_value_at(m->a, d, m->a->rw), d->val_len) == seq, "offset %llu changed while it was held", (unsigned long long)offset);
    MUST(cx_ack(m, offset, 1, 0) == CX_OK, "ack");
    if (put_at) MUST(__atomic_fetch_add(&acked_at[group][offset], 1, __ATOMIC_RELAXED) == 0, "offset %llu acknowledged twice", (unsigned long long)offset);
    count(&n_acked);
}

static void *member(void *arg)
{
    role *r = arg;
    cx_member m;
    uint64_t offset, held[3], seqs[3];
    int n = 0, group = r->number % 2;
    MUST(work_join(r->a, groups[group], false, false, &m) == CX_OK, "opening a member");
    for (;;) {
        bool last = complete();
        int rc = work_take(&m, last ? 0 : cx_now_ns() + SLICE_NS, &offset);
        if (rc == CX_NONE && last && !n) break;
        if (rc == CX_OK) {
            const cx_desc *d = cx_desc_at(m.a, offset);
            uint64_t seq = value_read(cx_value_at(m.a, d, m.a->rw), d->val_len);
            MUST(seq != UINT64_MAX, "offset %llu is torn", (unsigned long long)offset);
            if (next_random(&r->seed) % 50 == 0) {
                MUST(cx_nack(&m, offset, 1, 0) == CX_OK, "nack");
                continue;
            }
            held[n] = offset;
            seqs[n++] = seq;
        } else {
            MUST(rc == CX_NONE, "take: %d", rc);
        }
        while (n && (n == 3 || rc == CX_NONE || next_random(&r->seed) % 3)) {
            n--;
            finish(&m, held[n], group, seqs[n]);
        }
    }
    cx_member_close(&m);
    return NULL;
}

__attribute__((noinline)) static void lossy_copy(const cx_att *a, const cx_view *v, uint8_t *out) { memcpy(out, cx_value_at(a, &v->d, a->rw), v->d.val_len); }

static void *reader(void *arg)
{
    role *r = arg;
    cx_reader reader;
    cx_view v;
    uint8_t copy[VALUE_MAX];
    MUST(cx_reader_open(r->a, CX_START_END, 0, false, "driver", &reader) == CX_OK, "opening a reader");
    while (!stopped()) {
        cx_wait w = {0};
        int64_t until = cx_now_ns() + SLICE_NS;
        int rc = cx_poll(&reader, &w, true, &v);
        while (rc == CX_WAIT && cx_now_ns() < until && !stopped()) {
            cx_futex_wait(w.addr, w.value, SLICE_NS / 10);
            rc = cx_poll(&reader, &w, true, &v);
        }
        if (rc == CX_WAIT) continue;
        MUST(rc == CX_OK, "poll: %d", rc);
        lossy_copy(r->a, &v, copy);
        if (!cx_valid(r->a, v.offset)) continue;
        MUST(value_read(copy, v.d.val_len) != UINT64_MAX, "the reader's offset %llu is torn", (unsigned long long)v.offset);
        count(&n_read);
    }
    cx_reader_close(&reader);
    return NULL;
}

static void *observer(void *arg)
{
    role *r = arg;
    cx_view v;
    uint8_t copy[VALUE_MAX];
    uint64_t newest = 0;
    while (!stopped()) {
        int rc = cx_latest(r->a, &v);
        if (rc == CX_OK) {
            MUST(v.offset >= newest, "the newest record got older");
            newest = v.offset;
            lossy_copy(r->a, &v, copy);
            if (cx_valid(r->a, v.offset)) MUST(value_read(copy, v.d.val_len) != UINT64_MAX, "the newest record is torn");
        } else {
            MUST(rc == CX_NONE, "latest: %d", rc);
        }
        usleep(200);
    }
    return NULL;
}

/* -- one ring ------------------------------------------------------------------------------------------------------------------------ */

typedef struct {
    uint32_t policy, kind, options;
    char text[60], path[400];
} shape;

static cx_att *make(const shape *s)
{
    cx_att *a;
    cx_config k = {.path = s->path, .name = "driver", .spec = "{}", .n = 32, .data_bytes = 65536, .item_bytes = 128, .kind = s->kind, .policy = s->policy,
                   .options = s->options, .max_procs = 16, .max_ports = 32, .max_groups = 4, .mode = 0600, .heartbeat_ns = 5000000,
                   .group_grace_ns = 3600000000000ull};
    MUST(cx_create(&k, &a) == CX_OK, "creating %s", s->path);
    for (int g = 0; g < 2; g++) { /* they gate from the first record on */
        cx_member m;
        MUST(work_join(a, groups[g], false, false, &m) == CX_OK, "declaring a group");
        cx_member_close(&m);
    }
    return a;
}

static void drop(cx_att *a, const shape *s)
{
    char text[4096];
    int wrong = cx_check(a, text, sizeof text);
    MUST(wrong == 0, "%s", text);
    cx_detach(a);
    cx_unmap(a);
    MUST(cx_unlink(s->path, false) == CX_OK, "removing %s", s->path);
}

static void compare_books(cx_att *a, const shape *s)
{
    uint64_t published = LDA(a->ctl->published);
    for (int g = 0; g < 2; g++) {
        int at = cx_group_find(a, groups[g]);
        uint64_t missing = 0, lost = a->groups[at].lost;
        for (uint64_t o = 0; o < published; o++) {
            MUST(put_at[o] || !acked_at[g][o], "offset %llu was delivered and never put", (unsigned long long)o);
            missing += put_at[o] && !acked_at[g][o];
        }
        MUST(missing == lost, "%s: group %s misses %llu records, %llu were counted as lost", s->text, groups[g], (unsigned long long)missing,
             (unsigned long long)lost);
        MUST(lost == 0 || s->policy == CX_POLICY_DROP_OLDEST, "%s lost records", s->text);
    }
}

static void run_threads(const shape *s, double seconds, uint64_t seed)
{
    pthread_t all[PRODUCERS + MEMBERS + 2];
    role roles[PRODUCERS + MEMBERS + 2];
    cx_att *a = make(s);
    int n = PRODUCERS + MEMBERS + 2;
    put_at = calloc(OFFSETS, 1);
    for (int g = 0; g < 2; g++) acked_at[g] = calloc(OFFSETS, 1);
    ST(stop, 0);
    n_put = n_acked = n_read = n_dropped = 0;
    for (int i = 0; i < n; i++) {
        void *(*work)(void *) = i < PRODUCERS ? producer : i < PRODUCERS + MEMBERS ? member : i == PRODUCERS + MEMBERS ? reader : observer;
        roles[i] = (role){a, seed * 1000003 + (uint64_t)i * 7919 + 1, i < PRODUCERS ? i : i - PRODUCERS};
        MUST(pthread_create(&all[i], NULL, work, &roles[i]) == 0, "starting a thread");
    }
    usleep((useconds_t)(seconds * 1e6));
    ST(stop, 1);
    for (int i = 0; i < PRODUCERS; i++) pthread_join(all[i], NULL);
    ST(stop, 2);
    for (int i = PRODUCERS; i < n; i++) pthread_join(all[i], NULL);
    compare_books(a, s);
    printf("%s: %llu put, %llu acknowledged, %llu read, %llu refused\n", s->text, (unsigned long long)n_put, (unsigned long long)n_acked,
           (unsigned long long)n_read, (unsigned long long)n_dropped);
    MUST(n_put > 0 && n_acked > 0, "%s: nothing happened", s->text);
    for (int g = 0; g < 2; g++) free(acked_at[g]);
    free(put_at);
    put_at = NULL;
    drop(a, s);
}

/* -- processes --------------------------------------------------------------------------------------------------------------------- */

static void child(const shape *s, int number, uint64_t seed, pid_t parent)
{
    static void *(*const cast[])(void *) = {producer, producer, member, member, member, member, reader, observer};
    role r = {NULL, seed, number % 2};
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* an abort of the parent leaves nobody behind */
    if (getppid() != parent) _exit(1);
    MUST(cx_attach(s->path, &r.a) == CX_OK, "attaching");
    cast[number](&r);
    _exit(0);
}

static pid_t start(const shape *s, int number, uint64_t *seed)
{
    uint64_t own = ((uint64_t)next_random(seed) << 20) + (uint64_t)number + 1;
    pid_t parent = getpid(), pid = fork();
    MUST(pid >= 0, "fork");
    if (pid == 0) child(s, number, own, parent);
    return pid;
}

static uint64_t drain(cx_att *a, int group)
{
    cx_member m;
    uint64_t n = 0, offset;
    MUST(work_join(a, groups[group], false, false, &m) == CX_OK, "draining");
    while (work_take(&m, 0, &offset) == CX_OK) {
        const cx_desc *d = cx_desc_at(a, offset);
        MUST(value_read(cx_value_at(a, d, a->rw), d->val_len) != UINT64_MAX, "drained offset %llu is torn", (unsigned long long)offset);
        MUST(cx_ack(&m, offset, 1, 0) == CX_OK, "ack");
        n++;
    }
    MUST(a->groups[m.group].done == LDA(a->ctl->published), "group %s ends at %llu of %llu", groups[group],
         (unsigned long long)a->groups[m.group].done, (unsigned long long)LDA(a->ctl->published));
    cx_member_close(&m);
    return n;
}

static void run_processes(const shape *s, double seconds, uint64_t seed)
{
    pid_t all[8];
    int kills = 0, status;
    cx_att *a = make(s);
    int64_t until = cx_now_ns() + (int64_t)(seconds * 1e9);
    for (int i = 0; i < 8; i++) all[i] = start(s, i, &seed);
    while (cx_now_ns() < until || kills < 8) {
        int i = (int)(next_random(&seed) % 8);
        usleep(1000 + next_random(&seed) % 20000);
        kill(all[i], SIGKILL);
        MUST(waitpid(all[i], &status, 0) == all[i], "waiting");
        MUST(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s: process %d ended by itself: %x", s->text, i, status);
        kills++;
        all[i] = start(s, i, &seed);
    }
    for (int i = 0; i < 8; i++) {
        kill(all[i], SIGKILL);
        waitpid(all[i], &status, 0);
        MUST(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s: process %d ended by itself: %x", s->text, i, status);
    }
    cx_reap(a);
    uint64_t rest = drain(a, 0) + drain(a, 1);
    printf("%s: %llu records, %d kills, %u locks taken over, %llu handles reaped, %llu drained\n", s->text, (unsigned long long)LDA(a->ctl->published), kills,
           a->ctl->takeovers, (unsigned long long)a->ctl->reaped, (unsigned long long)rest);
    MUST(LDA(a->ctl->published) > 0, "%s: nothing happened", s->text);
    drop(a, s);
}

int main(int argc, char **argv)
{
    static const char *policies[] = {"wait", "drop_oldest", "drop_newest"}, *kinds[] = {"variable", "fixed"}, *writers[] = {"many", "one"};
    if (argc != 5 || (strcmp(argv[1], "threads") && strcmp(argv[1], "processes"))) {
        fprintf(stderr, "driver threads|processes PLACE SECONDS SEED\n");
        return 2;
    }
    double seconds = atof(argv[3]) / 12;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (uint32_t i = 0; i < 12; i++) {
        shape s = {.policy = i % 3, .kind = i / 3 % 2, .options = i / 6 ? CX_OPT_ONE_WRITER : 0};
        snprintf(s.text, sizeof s.text, "%s %s, %s", policies[s.policy], kinds[s.kind], writers[i / 6]);
        snprintf(s.path, sizeof s.path, "%s/driver.ring", argv[2]);
        if (strcmp(argv[1], "threads") == 0)
            run_threads(&s, seconds, strtoull(argv[4], NULL, 10) + i);
        else
            run_processes(&s, seconds, strtoull(argv[4], NULL, 10) + i + 1);
    }
    return 0;
}
