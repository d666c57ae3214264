/* survey.c - what a topic's file is and who uses it, told from outside: nothing is attached and nothing in the file is written.
 *
 * The problem. Whoever clears up must know that nobody alive uses a topic, and must still be right at the moment of the removal. Attaching to
 * find out would itself be a use, would recover what the dead left, and is refused by a file that is damaged or was made by another version.
 *
 * To look: the kernel's locks on the lifecycle byte and the process slots are listed with F_OFD_GETLK, which takes none. To remove: all of them are
 * locked exclusively in one step, as a removal does (segment.c), the questions are asked again under that lock, and only then the name is
 * taken away. Who attaches meanwhile waits for the lifecycle byte, finds no link and starts over; who leaves meanwhile is refused the lock and
 * may rely on us: a session topic that nobody uses is removed here. A look must not take that lock even for a moment, because nobody would remove
 * what a leaver was refused for.
 *
 * A process whose descriptors were closed for it (a daemoniser) holds no lock and is alive all the same; its open ports name it, and /proc is
 * asked, as everywhere (lock.c). So a topic counts as used where a byte is locked or where a port's owner is not dead.
 *
 * Numbers of a file that passes the checks of its superblock may be wrong all the same; they are used to count, never as an address that leads
 * outside of the mapping: offsets go through masks, and loops are bounded by the superblock's own counts.
 */
#define _GNU_SOURCE
#include "core.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRIES 100

static void list_locks(int fd, cx_survey *out)
{
    int64_t end = CX_SLOT_BYTE + 255;
    for (int64_t at = CX_LIFE_BYTE; at < end;) {
        struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = end - at};
        if (fcntl(fd, F_OFD_GETLK, &l) != 0 || l.l_type == F_UNLCK) return;
        int64_t first = l.l_start > at ? l.l_start : at, past = l.l_len ? l.l_start + l.l_len : end;
        for (int64_t i = first; i < past && i < end; i++) {
            if (i == CX_LIFE_BYTE)
                out->passing = true;
            else
                out->slots[out->users++] = (uint8_t)(i - CX_SLOT_BYTE);
        }
        at = past > first ? past : first + 1;
    }
}

/* Records of a group that are not finished; acks do not move `done` themselves. */
static uint64_t unfinished(const cx_att *a, uint32_t group, uint64_t published)
{
    const cx_group *g = &a->groups[group];
    uint64_t done = LDA(g->done), next = LDA(g->next), acked = 0;
    if (done > published || published - done > a->dmask + 1) return 0;
    for (uint64_t o = done; o < next && o < published; o++) acked += CX_W_STATE(LDA(*cx_word_at(a, group, o))) == CX_ACKED;
    return published - done - acked;
}

static void name_user(const cx_att *a, uint32_t slot, cx_survey *out)
{
    const cx_proc *p = &a->procs[slot];
    out->pid = LD(p->pid);
    memcpy(out->command, p->command, sizeof p->command);
    out->command[sizeof p->command] = 0;
}

static void count(const cx_att *a, cx_survey *out)
{
    uint64_t published = LDA(a->ctl->published), tail = LDA(a->ctl->tail);
    out->records = published >= tail && published - tail <= a->dmask + 1 ? published - tail : 0;
    for (uint32_t g = 0; g < a->super.max_groups; g++) {
        if (LDA(a->groups[g].state) != CX_GROUP_USED) continue;
        uint64_t n = unfinished(a, g, published);
        out->groups++;
        if (n > out->unread) out->unread = n;
    }
    if (out->users && out->slots[0] < a->super.max_procs) name_user(a, out->slots[0], out);
    for (uint32_t i = 0; i < a->super.max_ports && !out->users; i++) {
        const cx_port *p = &a->ports[i];
        if (LDA(p->state) != CX_PORT_USED || cx_owner_dead(a, p->owner, true)) continue;
        out->users = 1; /* without a lock: its descriptors were closed */
        name_user(a, (p->owner & 0xff) - 1, out);
    }
}

/* Made before the last boot: as right as any other, but for its boot. */
static int check(cx_super *s, const char *path, uint64_t bytes, bool *earlier)
{
    uint8_t boot[16];
    cx_boot_id(boot);
    *earlier = memcmp(s->magic, CX_MAGIC, 8) == 0 && s->layout_major == CX_LAYOUT_MAJOR && s->crc == cx_super_crc(s) && memcmp(boot, s->boot_id, 16) != 0;
    if (*earlier) {
        memcpy(s->boot_id, boot, 16);
        s->crc = cx_super_crc(s);
    }
    return cx_check_super(s, path, bytes);
}

static void look(int fd, const char *path, cx_survey *out)
{
    struct stat st;
    cx_att a = {.fd = fd, .slot = UINT32_MAX};
    memset(out, 0, sizeof *out);
    if (fstat(fd, &st) != 0) return;
    out->bytes = (uint64_t)st.st_size;
    list_locks(fd, out);
    int rc = CX_OK;
    if (pread(fd, &a.super, sizeof a.super, 0) != (ssize_t)sizeof a.super)
        rc = cx_fail(CX_ELAYOUT, "%s is not a comux topic (%lld bytes); remove the file", path, (long long)st.st_size);
    if (rc == CX_OK) rc = check(&a.super, path, out->bytes, &out->earlier_boot);
    void *meta = rc == CX_OK ? mmap(NULL, a.super.off_data, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (rc == CX_OK && meta == MAP_FAILED) rc = cx_fail_os(errno, "mapping %s", path);
    if (rc != CX_OK) {
        snprintf(out->problem, sizeof out->problem, "%s", cx_error_text());
        return;
    }
    out->session = a.super.options & CX_OPT_SESSION;
    cx_place(&a, meta);
    count(&a, out);
    munmap(meta, a.super.off_data);
}

int cx_survey_file(const char *path, uint32_t remove, cx_survey *out)
{
    for (int attempt = 0;; attempt++) {
        int fd;
        struct stat st;
        int rc = cx_open_checked(path, &fd, &st);
        if (rc != CX_OK) return rc;
        bool alone = remove && cx_lock_all(fd) == 0;
        look(fd, path, out);
        uint32_t kind = out->problem[0] ? 0 : out->session ? CX_REMOVE_SESSION : CX_REMOVE_PERSISTENT;
        bool wanted = remove & (kind | CX_REMOVE_HALF_MADE) && !out->users && !out->passing;
        if (alone && wanted && cx_same_file(fd, path)) {
            /* A temporary name may be the second one of a topic whose creator died after the link: that topic stays. */
            int e = !(remove & CX_REMOVE_HALF_MADE) ? cx_remove_name(fd, path) : unlink(path) == 0 ? 0 : errno;
            out->removed = e == 0;
            if (e) rc = cx_fail_os(e, "removing %s", path);
        }
        if (alone) cx_unlock_all(fd);
        close(fd);
        /* The last one left between our two looks, or another file has the name by now. */
        if (rc != CX_OK || !wanted || out->removed || attempt == TRIES) return rc;
    }
}
