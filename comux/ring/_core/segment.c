/* segment.c - the file of a topic: created whole or not at all, mapped, attached to, given back.
 *
 * Create. Whether there is room is asked first, so that too large a topic touches nothing. An unnamed file (O_TMPFILE) is allocated for
 * real (posix_fallocate: too small a tmpfs is ENOSPC here instead of SIGBUS later, also where two create at once),
 * filled in, attached to, and only then linked to its name. A crash before the link leaves nothing; file systems without unnamed
 * files get an exclusive temporary name, which a crash may leave behind and `gc` removes (survey.c).
 *
 * Attach. Open without following links, check owner and superblock from a private copy before anything is mapped, hold the lifecycle byte
 * shared while a process slot is taken (so that a removal, which wants it exclusively, cannot slip in between), publish the identity, and
 * only then raise the slot's generation: nothing can be owned by a name that is not yet explained. Then recover, in case all died.
 *
 * Leave. The last process to leave a session topic removes it. "Am I the last?" must be asked after letting go and answered in one step:
 * who asks while it still holds its slot sees others who ask at the same moment, all say no, and the topic stays. So:
 *   1. give the slot back (and the lifecycle byte, for an attach that failed);
 *   2. try to lock the lifecycle byte and all slots exclusively, in one system call that either gets all or nothing;
 *   3. got it: nobody is in and nobody can come in; unlink, mark as retired, unlock. Refused: it is somebody else's to do.
 * The topic is always removed: of all who leave, take the one whose step 1 is the last. Its step 2 is refused only by somebody who attaches
 * (and will leave, or fail and then leaves just so) or by another one in step 3 (who removes). Nobody waits for anybody, however long a
 * leaver is stopped or starved between its steps. Every holder of the lifecycle byte goes through `leave`, or is `cx_unlink`, which tries
 * the same lock; a newcomer in step 3 waits for the byte, finds no link and starts over.
 * A crash leaves: before 1 an attached dead process, as everywhere; between 1 and the unlink a topic without processes, as if the last of
 * them had been killed: it can be attached to, and whoever leaves then, or `gc`, removes it; after the unlink, nothing. Marking comes after
 * the unlink: a topic that has its name is never retired, or a crash in between would leave a name that nobody can attach to or create.
 * All bytes are unlocked explicitly: closing does it only with the last copy of the descriptor, and a child between fork and exec has one.
 *
 * Reset. Where nobody alive is attached, an attach may ask for a topic without a past (on_stale="reset"): all locks as in 2 above, then the
 * flag RESETTING, then everything but the process slots (a generation is never used twice) is as if just created, then the next epoch as
 * the last store. A crash in between leaves the flag; whoever attaches next sees it while it holds the lifecycle byte, and resets first.
 *
 * A process has one attachment per file, shared by its handles and threads and found by device and inode.
 *
 * Fork. The child closes its copies of the descriptors (that does not drop the parent's kernel locks, keeping them would keep a dead parent
 * alive) and marks every attachment as foreign: nothing it inherited may write to the segment any more. The mappings stay, so
 * that inherited views can still be read.
 */
#define _GNU_SOURCE
#include "core.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define LIFE_TRIES 1000 /* of a millisecond each: the lifecycle byte is refused for the length of one unlink */
#define MAX_PROCS 255

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t registry_once = PTHREAD_ONCE_INIT;
static cx_att *registry;

static void fork_prepare(void) { pthread_mutex_lock(&registry_lock); }
static void fork_parent(void) { pthread_mutex_unlock(&registry_lock); }
static void fork_child(void)
{
    for (cx_att *a = registry; a; a = a->next) {
        if (a->fd >= 0) close(a->fd);
        a->fd = -1;
        a->forked = 1;
    }
    registry = NULL;
    pthread_mutex_unlock(&registry_lock);
}
static void registry_start(void) { pthread_atfork(fork_prepare, fork_parent, fork_child); }

/* -- mapping --------------------------------------------------------------------------------------------------------------------- */

static uint8_t *map_twice(int fd, uint64_t at, uint64_t bytes, int protection)
{
    uint8_t *base = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return NULL;
    for (int i = 0; i < 2; i++)
        if (mmap(base + (uint64_t)i * bytes, bytes, protection, MAP_SHARED | MAP_FIXED, fd, (off_t)at) == MAP_FAILED) {
            munmap(base, 2 * bytes);
            return NULL;
        }
    return base;
}

static void unmap(cx_att *a)
{
    if (a->meta) munmap(a->meta, a->meta_bytes);
    if (a->rw) munmap(a->rw, 2 * a->c);
    if (a->ro) munmap(a->ro, 2 * a->c);
    free(a->path);
    free(a);
}

/* A mapping keeps the open file description it was made from alive, and with it the kernel's locks: also in a forked child, and for views
 * that outlive their ring. So mappings get a description of their own, which holds no lock. */
static int open_for_mapping(const cx_att *a)
{
    char self[40];
    snprintf(self, sizeof self, "/proc/self/fd/%d", a->fd);
    return open(self, O_RDWR | O_CLOEXEC);
}

void cx_place(cx_att *a, uint8_t *meta)
{
    const cx_super *s = &a->super;
    a->ctl = (cx_control *)(meta + s->off_control);
    a->procs = (cx_proc *)(meta + s->off_procs);
    a->ports = (cx_port *)(meta + s->off_ports);
    a->groups = (cx_group *)(meta + s->off_groups);
    a->words = (uint32_t *)(meta + s->off_delivery);
    a->times = a->words + (uint64_t)s->max_groups * s->n_desc;
    a->descs = meta + s->off_desc;
    a->n = s->n_records;
    a->dmask = s->n_desc - 1;
    a->cmask = (a->c & (a->c - 1)) == 0 ? a->c - 1 : 0;
    a->stride = s->slot_stride;
    a->desc_stride = s->desc_stride;
    a->fixed = s->kind == CX_FIXED;
    a->one_writer = s->options & CX_OPT_ONE_WRITER;
    a->pool = s->options & CX_OPT_POOL ? (cx_pool *)(meta + s->off_pool) : NULL;
}

static int map(cx_att *a)
{
    const cx_super *s = &a->super;
    int fd = open_for_mapping(a);
    if (fd < 0) return cx_fail_os(errno, "mapping %s (is /proc mounted?)", a->path);
    a->meta_bytes = s->off_data;
    a->c = s->data_bytes;
    void *meta = mmap(NULL, a->meta_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (meta != MAP_FAILED) {
        a->meta = meta;
        a->rw = map_twice(fd, s->off_data, a->c, PROT_READ | PROT_WRITE);
        a->ro = a->rw ? map_twice(fd, s->off_data, a->c, PROT_READ) : NULL;
    }
    close(fd);
    if (!a->ro) return cx_fail_os(errno, "mapping %s (%llu bytes)", a->path, (unsigned long long)a->c);
    cx_place(a, a->meta);
    /* How far ahead of need the tail moves: one lock round per chunk for the one writer, at the price of that much look-back. */
    a->chunk = a->n < 64 || (a->fixed && a->stride >= 65536) ? 1 : (uint32_t)(a->n / 8 < 64 ? a->n / 8 : 64);
    return CX_OK;
}

void cx_populate(const cx_att *a, bool writable)
{
    if (!a->fixed || a->stride < 256 << 10 || a->c > (uint64_t)1 << 30) return;
    madvise(writable ? a->rw : a->ro, 2 * a->c, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ); /* advice: older kernels refuse */
}

/* -- process slots --------------------------------------------------------------------------------------------------------------- */

static int byte_lock(int fd, int64_t at, int64_t n, short type)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = n};
    return fcntl(fd, F_OFD_SETLK, &l) == 0 ? 0 : errno;
}

static int take_slot(cx_att *a)
{
    uint64_t start = 0;
    char state;
    for (uint32_t i = 0; i < a->super.max_procs; i++) {
        int e = byte_lock(a->fd, CX_SLOT_BYTE + i, 1, F_WRLCK);
        if (e == EAGAIN || e == EACCES) continue;
        if (e) return cx_fail_os(e, "locking a process slot of %s (does the file system have OFD locks?)", a->path);
        FAILPOINT("attach.byte_locked");
        cx_proc *p = &a->procs[i];
        ST(p->pid, (uint32_t)getpid());
        ST(p->pid_ns, cx_pid_namespace());
        cx_process_identity((uint32_t)getpid(), &start, &state);
        ST(p->start_time, start);
        ST(p->attached_ns, (uint64_t)cx_wall_ns());
        int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
        memset(p->command, 0, sizeof p->command);
        if (fd >= 0) {
            ssize_t n = read(fd, p->command, sizeof p->command - 1);
            if (n > 0 && p->command[n - 1] == '\n') p->command[n - 1] = 0;
            close(fd);
        }
        uint32_t gen = (LD(p->gen) + 1) & 0x7fffff;
        if (gen == 0) gen = 1;
        STR(p->gen, gen); /* SYNC identity (release) */
        FAILPOINT("attach.generation");
        a->slot = i;
        a->me = gen << 8 | (i + 1);
        return CX_OK;
    }
    return cx_fail(CX_EBUSY, "topic '%s': %u processes are attached already; raise max_procs", a->super.name, a->super.max_procs);
}

/* -- create ---------------------------------------------------------------------------------------------------------------------- */

static int no_space(const cx_config *k, const char *dir, uint64_t need, uint64_t free_bytes)
{
    if (free_bytes == UINT64_MAX) free_bytes = 0; /* a quota: the file system itself has no bound */
    return cx_fail(CX_ENOSPACE,
                   "topic '%s' needs %.1f MB, %.1f MB are free in %s; start the container with --shm-size=%lluM or --ipc=host, set COMUX_DIR, or ask "
                   "for fewer slots or data_bytes",
                   k->name, (double)need / 1e6, (double)free_bytes / 1e6, dir, (unsigned long long)(need / 500000 + 64));
}

/* Bytes that are free; UINT64_MAX where nobody can tell (a tmpfs without a bound says that it has no blocks at all). */
static uint64_t free_in(const char *dir)
{
    struct statvfs v;
    return statvfs(dir, &v) == 0 && v.f_blocks ? (uint64_t)v.f_bavail * v.f_frsize : UINT64_MAX;
}

static int allocate(const cx_config *k, const char *dir, int fd, uint64_t bytes)
{
    if (ftruncate(fd, 0) != 0) return cx_fail_os(errno, "topic '%s': truncating", k->name);
    for (uint64_t at = 0; at < bytes;) {
        uint64_t step = bytes - at < (uint64_t)64 << 20 ? bytes - at : (uint64_t)64 << 20;
        int e = posix_fallocate(fd, (off_t)at, (off_t)step);
        if (e == EINTR) continue;
        if (e == ENOSPC || e == EFBIG || e == EDQUOT) return no_space(k, dir, bytes, free_in(dir)); /* somebody was faster */
        if (e) return cx_fail_os(e, "topic '%s': allocating %llu bytes in %s", k->name, (unsigned long long)bytes, dir);
        at += step;
    }
    return CX_OK;
}

static void begin_log(cx_att *a)
{
    cx_control *c = a->ctl;
    uint64_t first = a->super.first_offset;
    c->head = c->published = c->tail = first;
    c->aborted_below = first << 32;
    c->data_head = a->fixed ? first * a->stride : 0;
    c->wake_min = c->space_want = CX_NOWHERE;
    for (uint32_t g = 0; g < a->super.max_groups; g++) a->groups[g].hole_space = a->groups[g].hole_end = a->groups[g].wake_at = CX_NOWHERE;
    if (a->pool) cx_pool_rebuild(a);
}

static void initialise(cx_att *a)
{
    memcpy(a->meta, &a->super, sizeof a->super);
    begin_log(a);
}

/* Nobody else is in, and nobody can come in. */
static void reset(cx_att *a)
{
    cx_control *c = a->ctl;
    uint64_t state = LD(c->state), next = (uint64_t)(cx_epoch(state) + 1) << 32;
    STR(c->state, state | CX_STATE_RESETTING);
    FAILPOINT("reset.begun");
    uint64_t ports = c->port_seq; /* ids of handles are never used twice either */
    memset(a->ports, 0, a->super.off_desc - a->super.off_ports);
    memset(a->descs, 0, a->super.off_data - a->super.off_desc); /* and the pool with its pins */
    FAILPOINT("reset.half");
    memset(c, 0, offsetof(cx_control, state));
    memset(&c->end_offset, 0, sizeof *c - offsetof(cx_control, end_offset));
    c->port_seq = ports;
    begin_log(a);
    FAILPOINT("reset.done");
    STR(c->state, next);
}

/* A topic left behind by an earlier boot is nobody's: its file may be replaced. */
static bool from_earlier_boot(const char *path)
{
    cx_super s;
    uint8_t boot[16];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    bool whole = pread(fd, &s, sizeof s, 0) == (ssize_t)sizeof s && memcmp(s.magic, CX_MAGIC, 8) == 0 && s.layout_major == CX_LAYOUT_MAJOR &&
                 s.crc == cx_super_crc(&s);
    close(fd);
    cx_boot_id(boot);
    return whole && memcmp(boot, s.boot_id, 16) != 0;
}

static int link_into_place(int fd, const char *temp, const char *path)
{
    char self[40];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    for (int attempt = 0;; attempt++) {
        int rc = temp ? link(temp, path) : linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
        if (rc == 0) return 0;
        if (errno != EEXIST || attempt || !from_earlier_boot(path) || unlink(path) != 0) return errno ? errno : EEXIST;
    }
}

static int exists(const cx_config *k, const char *dir) { return cx_fail(CX_EEXISTS, "topic '%s' exists already in %s", k->name, dir); }

bool cx_same_file(int fd, const char *path)
{
    struct stat mine, named;
    return fstat(fd, &mine) == 0 && lstat(path, &named) == 0 && mine.st_dev == named.st_dev && mine.st_ino == named.st_ino;
}

/* A temporary name is locked while it is being filled in, so that nobody clears it up; one that a process of our number left behind is. -1: errno. */
static int open_named(const char *temp, mode_t mode)
{
    cx_survey left;
    for (bool cleared = false;;) {
        int fd = open(temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
        if (fd >= 0) {
            int e = byte_lock(fd, CX_LIFE_BYTE, 1, F_RDLCK);
            if (e != EAGAIN && e != EACCES && cx_same_file(fd, temp)) return fd; /* without such locks at all: take_slot says so */
            close(fd); /* cleared up before it was locked */
            continue;
        }
        if (errno != EEXIST || cleared) return -1;
        cleared = true;
        cx_survey_file(temp, CX_REMOVE_HALF_MADE, &left);
    }
}

static int create_in(const cx_config *k, const char *dir, cx_att *a)
{
    char temp[4200];
    bool named = false;
    /* Looked at before anything is allocated: a large topic that exists is no reason to find the memory full. */
    if (access(a->path, F_OK) == 0 && !from_earlier_boot(a->path)) return exists(k, dir);
    uint64_t free_bytes = free_in(dir);
    if (a->super.total_bytes > free_bytes) return no_space(k, dir, a->super.total_bytes, free_bytes);
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, k->mode);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        snprintf(temp, sizeof temp, "%s/.%s.%d.tmp", dir, k->name, (int)getpid());
        fd = open_named(temp, k->mode);
        named = fd >= 0;
    }
    if (fd < 0) return cx_fail_os(errno, "topic '%s': creating a file in %s", k->name, dir);
    a->fd = fd;
    fchmod(fd, k->mode); /* the umask does not narrow what was asked for */
    int rc = allocate(k, dir, fd, a->super.total_bytes);
    if (rc == CX_OK) rc = map(a);
    if (rc == CX_OK) {
        initialise(a);
        rc = take_slot(a);
    }
    FAILPOINT("create.before_link");
    if (rc == CX_OK) {
        int e = link_into_place(fd, named ? temp : NULL, a->path);
        if (e == EEXIST)
            rc = exists(k, dir);
        else if (e)
            rc = cx_fail_os(e, "topic '%s': linking %s", k->name, a->path);
    }
    if (named) {
        unlink(temp);
        byte_lock(fd, CX_LIFE_BYTE, 1, F_UNLCK);
    }
    return rc;
}

/* Nobody attached, nobody attaching, and nobody can until it is unlocked or closed; in one step. 0 or errno. */
int cx_lock_all(int fd) { return byte_lock(fd, CX_LIFE_BYTE, 1 + MAX_PROCS, F_WRLCK); }
void cx_unlock_all(int fd) { byte_lock(fd, CX_LIFE_BYTE, 1 + MAX_PROCS, F_UNLCK); }

/* Takes the name away, then tells those who still have the file, if it is a topic. 0 or errno. */
int cx_remove_name(int fd, const char *path)
{
    uint32_t one = 1;
    char magic[8];
    if (unlink(path) != 0) return errno;
    FAILPOINT("leave.unlinked");
    if (pread(fd, magic, sizeof magic, 0) != sizeof magic || memcmp(magic, CX_MAGIC, sizeof magic) != 0) return 0;
    return pwrite(fd, &one, sizeof one, CX_RETIRED_AT) == sizeof one ? 0 : errno;
}

static void leave(cx_att *a)
{
    cx_unlock_all(a->fd);
    FAILPOINT("leave.released");
    if (a->super.options & CX_OPT_SESSION && cx_lock_all(a->fd) == 0) {
        FAILPOINT("leave.alone");
        if (cx_same_file(a->fd, a->path)) cx_remove_name(a->fd, a->path);
        cx_unlock_all(a->fd);
    }
    close(a->fd);
    a->fd = -1;
}

static void enlist(cx_att *a)
{
    struct stat st;
    fstat(a->fd, &st);
    a->dev = st.st_dev;
    a->ino = st.st_ino;
    a->users = a->maps = 1;
    a->next = registry;
    registry = a;
}

static void abandon(cx_att *a)
{
    if (a->fd >= 0) close(a->fd);
    unmap(a);
}

int cx_create(const cx_config *k, cx_att **out)
{
    pthread_once(&registry_once, registry_start);
    cx_att *a = calloc(1, sizeof *a);
    char *dir = strdup(k->path);
    if (!a || !dir) {
        free(a);
        free(dir);
        return cx_fail_os(ENOMEM, "topic '%s'", k->name);
    }
    char *slash = strrchr(dir, '/');
    if (slash) *slash = 0;
    a->fd = -1;
    a->path = strdup(k->path);
    cx_super_from(k, &a->super);
    int rc = create_in(k, slash ? dir : ".", a);
    free(dir);
    if (rc != CX_OK) {
        abandon(a);
        return rc;
    }
    pthread_mutex_lock(&registry_lock);
    enlist(a);
    pthread_mutex_unlock(&registry_lock);
    *out = a;
    return CX_OK;
}

/* -- attach ---------------------------------------------------------------------------------------------------------------------- */

int cx_open_checked(const char *path, int *out, struct stat *st)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) return cx_fail(CX_ENOTOPIC, "%s does not exist; create the topic or start what publishes it", path);
    if (fd < 0 && errno == ELOOP) return cx_fail(CX_ELAYOUT, "%s is a symbolic link and is not followed; remove it", path);
    if (fd < 0 && errno == EACCES) return cx_fail(CX_ELAYOUT, "%s belongs to somebody else; use a directory of your own (COMUX_DIR)", path);
    if (fd < 0) return cx_fail_os(errno, "opening %s", path);
    if (fstat(fd, st) != 0 || !S_ISREG(st->st_mode) || st->st_uid != geteuid()) {
        close(fd);
        return cx_fail(CX_ELAYOUT, "%s belongs to user %u, this process runs as %u; use a directory of your own (COMUX_DIR)", path,
                       (unsigned)st->st_uid, (unsigned)geteuid());
    }
    *out = fd;
    return CX_OK;
}

static bool half_reset(int fd)
{
    uint64_t state;
    return pread(fd, &state, sizeof state, 4096 + offsetof(cx_control, state)) == sizeof state && (state & CX_STATE_RESETTING);
}

/* Forgets what is in a topic that nobody alive is attached to; a topic that is in use stays as it is. */
static int forget(cx_att *a)
{
    if (cx_lock_all(a->fd) != 0) return CX_OK; /* in use, or another one is just forgetting it */
    int rc = map(a);
    if (rc == CX_OK) reset(a);
    cx_unlock_all(a->fd);
    return rc;
}

/* Holds the lifecycle byte shared. CX_WAIT: a removal is under way or was faster, look again. */
static int lock_life(int fd, const char *path)
{
    for (int i = 0;; i++) {
        int e = byte_lock(fd, CX_LIFE_BYTE, 1, F_RDLCK);
        if (e == 0) break;
        if (e != EAGAIN && e != EACCES) return cx_fail_os(e, "locking %s (does the file system have OFD locks?)", path);
        if (i == LIFE_TRIES) return cx_fail(CX_EBUSY, "%s: somebody has been removing it for a second", path);
        struct timespec t = {0, 1000000};
        nanosleep(&t, NULL);
    }
    struct stat st;
    uint32_t retired = 0;
    bool told = pread(fd, &retired, sizeof retired, CX_RETIRED_AT) == sizeof retired && retired;
    if (fstat(fd, &st) != 0 || st.st_nlink == 0 || half_reset(fd)) return CX_WAIT;
    return told ? cx_fail(CX_ECORRUPT, "%s is marked as removed and still has a name; remove the topic", path) : CX_OK;
}

static int attach_new(const char *path, int fd, const struct stat *st, bool fresh, cx_att **out)
{
    cx_att *a = calloc(1, sizeof *a);
    if (!a) {
        close(fd);
        return cx_fail_os(ENOMEM, "%s", path);
    }
    a->fd = fd;
    a->path = strdup(path);
    int rc = CX_OK;
    if (pread(fd, &a->super, sizeof a->super, 0) != (ssize_t)sizeof a->super)
        rc = cx_fail(CX_ELAYOUT, "%s is not a comux topic (%lld bytes); remove the file", path, (long long)st->st_size);
    if (rc == CX_OK) rc = cx_check_super(&a->super, path, (uint64_t)st->st_size);
    if (rc != CX_OK) {
        abandon(a); /* not known to be a topic: nothing is touched, not even where it says it is one of a session */
        return rc;
    }
    if (fresh || half_reset(fd)) rc = forget(a);
    if (rc == CX_OK) rc = lock_life(fd, path);
    if (rc == CX_OK && !a->meta) rc = map(a);
    if (rc == CX_OK) rc = take_slot(a);
    FAILPOINT("attach.decided");
    if (rc != CX_OK) {
        leave(a); /* the last of the others may have left meanwhile, and was refused because of us */
        abandon(a);
        return rc;
    }
    byte_lock(fd, CX_LIFE_BYTE, 1, F_UNLCK);
    rc = cx_lock(a, CX_GIVE_UP);
    FAILPOINT("attach.lock_held");
    if (rc == CX_OK && !cx_sane(a)) {
        cx_unlock(a);
        rc = cx_fail(CX_ECORRUPT, "%s: its positions contradict each other; remove the topic", path);
    } else if (rc == CX_OK) {
        cx_recover(a); /* also where nobody is left alive: their records become deliverable again */
        cx_unlock(a);
    }
    if (rc != CX_OK) {
        leave(a);
        abandon(a);
        return rc;
    }
    enlist(a);
    *out = a;
    return CX_OK;
}

static int attach(const char *path, bool fresh, cx_att **out)
{
    pthread_once(&registry_once, registry_start);
    for (int attempt = 0;; attempt++) {
        int fd = -1;
        struct stat st;
        int rc = cx_open_checked(path, &fd, &st);
        if (rc != CX_OK) return rc;
        pthread_mutex_lock(&registry_lock);
        cx_att *a = registry;
        while (a && !(a->users > 0 && a->dev == st.st_dev && a->ino == st.st_ino)) a = a->next;
        if (a) {
            a->users++;
            a->maps++;
            close(fd);
            *out = a;
        } else {
            rc = attach_new(path, fd, &st, fresh, out);
        }
        pthread_mutex_unlock(&registry_lock);
        if (rc != CX_WAIT) return rc;
        if (attempt == 100) return cx_fail(CX_EBUSY, "%s: removed and created again too often while attaching", path);
    }
}

int cx_attach(const char *path, cx_att **out) { return attach(path, false, out); }
int cx_attach_fresh(const char *path, cx_att **out) { return attach(path, true, out); }

/* -- give back ------------------------------------------------------------------------------------------------------------------- */

void cx_hold(cx_att *a)
{
    pthread_mutex_lock(&registry_lock);
    a->users++;
    pthread_mutex_unlock(&registry_lock);
}

void cx_detach(cx_att *a)
{
    pthread_mutex_lock(&registry_lock);
    if (--a->users == 0 && a->fd >= 0) leave(a);
    pthread_mutex_unlock(&registry_lock);
}

void cx_unmap(cx_att *a)
{
    pthread_mutex_lock(&registry_lock);
    bool last = --a->maps == 0;
    if (last)
        for (cx_att **at = &registry; *at; at = &(*at)->next)
            if (*at == a) {
                *at = a->next;
                break;
            }
    pthread_mutex_unlock(&registry_lock);
    if (last) unmap(a);
}

int cx_unlink(const char *path, bool force)
{
    int fd;
    struct stat st;
    int rc = cx_open_checked(path, &fd, &st);
    if (rc != CX_OK) return rc;
    /* Attached processes go on with the memory they have; newcomers do not find it. */
    if (!force && cx_lock_all(fd) != 0)
        rc = cx_fail(CX_EBUSY, "%s is in use by a living process; close it there, or remove it with force", path);
    else if (cx_same_file(fd, path)) {
        int e = cx_remove_name(fd, path);
        if (e && e != ENOENT) rc = cx_fail_os(e, "removing %s", path);
    }
    close(fd);
    return rc;
}
