/* damage.c - every metadata byte of a topic takes several other values; what a program then does with it is in damaged.h.
 *
 *   damage PLACE STEP [descriptors]
 *                         every STEP-th byte of everything before the data (keys and headers of fixed slots excepted: they are
 *                         content, as values are), starting at a place that depends on the kind
 *
 * Prints one line per kind of topic. The place of a crash, a hang or a wrong record is printed by the handler of the signal.
 */
#define _GNU_SOURCE
#include "damaged.h"
#include <signal.h>

static volatile size_t at_place;
static volatile unsigned at_value;

static void tell_where(int number)
{
    char text[100];
    int n = snprintf(text, sizeof text, "signal %d with byte %zu set to 0x%02x\n", number, at_place, at_value);
    if (write(2, text, (size_t)n) < 0) _exit(3);
    signal(number, SIG_DFL);
    raise(number);
}

/* See topic.vouched. Of one writer a record counts when `published` says so, and no trace of it after that. */
static uint64_t vouched_for(const cx_super *s, size_t i, uint8_t value)
{
    cx_control c = *(const cx_control *)((const uint8_t *)s + s->off_control);
    if (i < s->off_control || i >= s->off_control + sizeof c) return RECORDS;
    ((uint8_t *)&c)[i - s->off_control] = value;
    if (c.state & CX_STATE_RESETTING) return 0;
    return s->options & CX_OPT_ONE_WRITER && c.published < RECORDS ? c.published : RECORDS;
}

static void all_places(const char *place, size_t step, bool descriptors, bool fixed, bool one_writer)
{
    static const uint8_t flips[] = {0x01, 0x02, 0x10, 0x80, 0xff};
    topic t;
    size_t opened = 0, refused = 0;
    records_seen = 0;
    topic_make(&t, place, fixed, one_writer);
    cx_super *s = (cx_super *)t.bytes;
    size_t first = (size_t)fixed + 2 * (size_t)one_writer, aux = s->off_desc;
    for (size_t i = (descriptors ? aux : 0) + first % step; i < t.meta; i += step) {
        if (fixed && i >= aux && (i - aux) % s->desc_stride >= sizeof(cx_desc)) continue; /* keys and headers: content, as the value is */
        for (size_t f = 0; f < sizeof flips; f++) {
            uint8_t value = t.bytes[i] ^ flips[f];
            at_place = i;
            at_value = value;
            int fd = topic_restore(&t);
            MUST(pwrite(fd, &value, 1, (off_t)i) == 1, "writing");
            close(fd);
            t.vouched = vouched_for(s, i, value);
            alarm(20);
            if (use(&t))
                opened++;
            else
                refused++;
            unlink(t.path);
        }
    }
    alarm(0);
    printf("%s, %s: opened %zu, refused %zu, %llu records compared\n", fixed ? "fixed" : "variable", one_writer ? "one" : "many", opened, refused,
           (unsigned long long)records_seen);
    free(t.bytes);
}

int main(int argc, char **argv)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGALRM, SIGABRT, SIGFPE, SIGILL};
    if (argc < 3) {
        fprintf(stderr, "damage PLACE STEP [descriptors]\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) signal(signals[i], tell_where);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < 4; i++) all_places(argv[1], strtoul(argv[2], NULL, 10), argc > 3, i & 1, i & 2);
    return 0;
}
