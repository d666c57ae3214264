/* failpoint.h - named places at which a test lets a process die.
 *
 * FAILPOINT("claim.after_head") is nothing in the module users load. In the test build it registers its name in a section of its own (so
 * the list of all names is complete by construction) and, where a test armed it, kills (SIGKILL) or stops (SIGSTOP) the process at the
 * n-th pass: exactly the instant of death the crash table talks about.
 */
#ifndef CX_FAILPOINT_H
#define CX_FAILPOINT_H

#ifdef COMUX_FAILPOINTS
#include <stddef.h>

typedef struct {
    const char *name;
} cx_failpoint;

extern int cx_failpoint_armed;
void cx_failpoint_hit(const char *name);
int cx_failpoint_arm(const char *name, int nth, int action); /* action: 0 off, 1 kill, 2 stop; -1 where the name is unknown */
size_t cx_failpoint_list(const cx_failpoint **first);

#define FAILPOINT(text)                                                                                          \
    do {                                                                                                         \
        static const cx_failpoint here_ __attribute__((section("cx_failpoints"), used, aligned(sizeof(void *)))) = {text}; \
        if (__builtin_expect(cx_failpoint_armed, 0)) cx_failpoint_hit(here_.name);                               \
    } while (0)
#else
#define FAILPOINT(text) ((void)0)
#endif

#endif
