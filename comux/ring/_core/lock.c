/* lock.c - the owner-named topic lock, and who is alive.
 *
 * The problem. Processes die at any instant, also inside the lock. Whoever waits must find out and go on, without a daemon and without
 * ever taking a slow process for a dead one.
 *
 * The lock word names its owner: bit 31 "somebody sleeps", bits 30..8 generation, bits 7..0 process slot + 1; 0 is free.
 *   lock:    CAS 0 -> me. Else spin a little, set bit 31, futex_wait in slices of 2 ms.
 *   unlock:  exchange with 0 (release); futex_wake(1) where bit 31 was set.
 *   steal:   a slice passed, the word is unchanged and its owner is dead: CAS word -> me (bit 31 kept, or a sleeper is lost), recover().
 * Who slept takes the lock with bit 31 set, because it cannot know whether others sleep too.
 *
 * Who is dead. Process slot i belongs to whoever holds the kernel's open-file-description lock on byte CX_SLOT_BYTE + i of the file. The
 * kernel drops it at death, also for SIGKILL, also for an unreaped zombie, only after the last thread stopped writing.
 *   generation differs                                -> dead (the slot was given to somebody else)
 *   generation equal, byte locked                     -> alive
 *   generation equal, byte free, same process running -> alive: somebody closed our descriptors; do not reap
 *   generation equal, byte free, otherwise            -> dead
 *   byte locked, no progress for 1 s, process gone    -> dead: a forked child without our fork handler keeps the descriptor (deep)
 *
 * A crash leaves: before CAS nothing; between CAS and exchange the word, which the next locker steals; between exchange and wake a
 * sleeper that finds the free lock after its slice.
 *
 * The interpreter. A sleep leaves the interpreter through the hooks and the CAS is only tried again after coming back: a thread that held
 * the topic lock while it waits for the interpreter lock would stop every other process for as long as this one's Python pleases.
 */
#define _GNU_SOURCE
#include "core.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WAITERS 0x80000000u
#define SPINS 100
#define SLICE_NS 2000000
#define PATIENCE_NS 1000000000

void *(*cx_hook_block_begin)(void);
int (*cx_hook_block_end)(void *, int);

static _Thread_local char error_text[512];
static _Thread_local int error_errno;

int cx_fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error_text, sizeof error_text, format, args);
    va_end(args);
    error_errno = 0;
    return code;
}

int cx_fail_os(int error, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(error_text, sizeof error_text, "%s: %s", text, strerror(error));
    error_errno = error;
    return CX_EOS;
}

const char *cx_error_text(void) { return error_text; }
int cx_error_errno(void) { return error_errno; }

int64_t cx_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

uint32_t cx_ticks(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t); /* each delivery pays for it: a few nanoseconds */
    return (uint32_t)t.tv_sec * 1000 + (uint32_t)t.tv_nsec / 1000000;
}

int64_t cx_wall_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* -- liveness -------------------------------------------------------------------------------------------------------------------- */

uint64_t cx_pid_namespace(void)
{
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? (uint64_t)st.st_ino : 0;
}

/* Whether /proc shows the processes of our namespace: in a new one it shows the outer one's until it is mounted anew, and a number found
 * there is somebody else's. */
static bool proc_is_ours(void)
{
    char text[24] = {0};
    return readlink("/proc/self", text, sizeof text - 1) > 0 && strtoul(text, NULL, 10) == (unsigned long)getpid();
}

/* Start time (clock ticks since boot) and state letter of a process; false where /proc does not show it. */
bool cx_process_identity(uint32_t pid, uint64_t *start_time, char *state)
{
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return false;
    text[n] = 0;
    const char *at = strrchr(text, ')'); /* the command may hold anything, also parentheses */
    if (!at || at[1] != ' ' || !at[2]) return false;
    *state = at[2];
    at += 2;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (!at) return false;
        at++;
    }
    *start_time = strtoull(at, NULL, 10);
    return true;
}

typedef struct {
    uint32_t pid;
    uint64_t pid_ns, start_time;
    char command[32];
} identity;

static bool read_identity(const cx_att *a, uint32_t owner, identity *out)
{
    uint32_t slot = (owner & 0xff) - 1;
    if (slot >= a->super.max_procs) return false;
    const cx_proc *p = &a->procs[slot];
    if (LDA(p->gen) != owner >> 8) return false; /* SYNC identity (acquire) */
    out->pid = LD(p->pid);
    out->pid_ns = LD(p->pid_ns);
    out->start_time = LD(p->start_time);
    memcpy(out->command, p->command, sizeof out->command);
    out->command[sizeof out->command - 1] = 0;
    FENCE_ACQ();
    return LD(p->gen) == owner >> 8;
}

/* +1 certainly running, -1 certainly gone, 0 cannot be told from here. A zombie is gone only where the kernel has dropped its lock: its main
 * thread may have left, or died first, while others of the process still write. */
static int process_running(const identity *who, bool locked)
{
    uint64_t start;
    char state;
    if (who->pid == 0 || who->pid_ns == 0 || who->pid_ns != cx_pid_namespace() || !proc_is_ours()) return 0;
    if (cx_process_identity(who->pid, &start, &state)) return start == who->start_time && (locked || (state != 'Z' && state != 'X')) ? 1 : -1;
    return kill((pid_t)who->pid, 0) != 0 && errno == ESRCH ? -1 : 0;
}

bool cx_owner_dead(const cx_att *a, uint32_t owner, bool deep)
{
    uint32_t slot = (owner & 0xff) - 1, gen = owner >> 8;
    if (slot >= a->super.max_procs) return true; /* nobody can own anything under this name */
    if (LDA(a->procs[slot].gen) != gen) return true;
    if (slot == a->slot) return false; /* our own byte looks free to ourselves */
    struct flock probe = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = CX_SLOT_BYTE + slot, .l_len = 1};
    if (a->fd < 0 || fcntl(a->fd, F_OFD_GETLK, &probe) != 0) return false; /* no proof */
    bool locked = probe.l_type != F_UNLCK;
    if (locked && !deep) return false;
    identity who;
    if (!read_identity(a, owner, &who)) return LDA(a->procs[slot].gen) != gen;
    int running = process_running(&who, locked);
    return locked ? running < 0 : running <= 0;
}

void cx_owner_text(const cx_att *a, uint32_t owner, char *out, size_t n)
{
    identity who;
    uint64_t start;
    char state = '?';
    if (!read_identity(a, owner, &who)) {
        snprintf(out, n, "a process that is gone");
        return;
    }
    if (who.pid_ns == cx_pid_namespace() && !cx_process_identity(who.pid, &start, &state)) state = '?';
    snprintf(out, n, "pid %u (%s, state %c%s)", who.pid, who.command, state, state == 'T' ? ": stopped" : "");
}

/* -- the lock -------------------------------------------------------------------------------------------------------------------- */

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline bool acquire(cx_att *a, uint32_t from, uint32_t to)
{
    return __atomic_compare_exchange_n(&a->ctl->lock, &from, to, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* One sleep of at most a slice outside of the interpreter. 0, ETIMEDOUT, or -1 where a signal handler raised. */
static int sleep_slice(cx_att *a, uint32_t word, bool interruptible)
{
    void *token = cx_hook_block_begin ? cx_hook_block_begin() : NULL;
    FAILPOINT("lock.asleep");
    int e = cx_futex_wait(&a->ctl->lock, word, SLICE_NS);
    if (cx_hook_block_end && cx_hook_block_end(token, interruptible) != 0) return -1;
    return e;
}

static int lock_slow(cx_att *a, int64_t deadline)
{
    for (int i = 0; i < SPINS; i++) {
        if (LD(a->ctl->lock) == 0 && acquire(a, 0, a->me)) return CX_OK;
        relax();
    }
    int64_t began = cx_now_ns();
    uint32_t waiters = 0;
    bool bounded = deadline != CX_NO_DEADLINE;
    for (;;) {
        uint32_t v = LD(a->ctl->lock);
        if (v == 0) {
            if (acquire(a, 0, a->me | waiters)) return CX_OK;
            continue;
        }
        if (!(v & WAITERS)) {
            if (!acquire(a, v, v | WAITERS)) continue;
            v |= WAITERS;
        }
        waiters = WAITERS;
        int e = sleep_slice(a, v, deadline >= 0);
        if (e == -1) return CX_ESIGNAL;
        if (a->forked) return cx_fail(CX_ECLOSED, "topic '%s': inherited through a fork; attach again", a->super.name);
        if (e != ETIMEDOUT) continue;
        int64_t waited = cx_now_ns() - began;
        if (LD(a->ctl->lock) == v && cx_owner_dead(a, v & ~WAITERS, waited > PATIENCE_NS) && acquire(a, v, a->me | WAITERS)) {
            INC(a->ctl->takeovers, 1);
            FAILPOINT("lock.stolen");
            cx_recover(a);
            return CX_OK;
        }
        if (bounded && waited > PATIENCE_NS && began + waited > deadline) {
            char who[96];
            cx_owner_text(a, v & ~WAITERS, who, sizeof who);
            return cx_fail(CX_ETIMEOUT, "topic '%s': its lock is held by %s for %.1f s; continue or kill that process", a->super.name, who,
                           (double)waited / 1e9);
        }
    }
}

int cx_lock(cx_att *a, int64_t deadline)
{
    if (CX_UNLIKELY(a->forked)) return cx_fail(CX_ECLOSED, "topic '%s': inherited through a fork; attach again", a->super.name);
    int rc = CX_LIKELY(acquire(a, 0, a->me)) ? CX_OK : lock_slow(a, deadline);
    FAILPOINT("lock.held");
    return rc;
}

void cx_unlock(cx_att *a)
{
    FAILPOINT("lock.before_unlock");
    uint32_t old = __atomic_exchange_n(&a->ctl->lock, 0, __ATOMIC_RELEASE);
    assert((old & ~WAITERS) == a->me);
    FAILPOINT("lock.after_unlock");
    if (CX_UNLIKELY(old & WAITERS)) cx_futex_wake(&a->ctl->lock, 1);
}
