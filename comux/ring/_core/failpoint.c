/* failpoint.c - arming and hitting the named places of failpoint.h. Empty in the module users load. */
#include "failpoint.h"

#ifdef COMUX_FAILPOINTS
#include <signal.h>
#include <string.h>
#include <unistd.h>

extern const cx_failpoint __start_cx_failpoints[] __attribute__((visibility("hidden")));
extern const cx_failpoint __stop_cx_failpoints[] __attribute__((visibility("hidden")));

int cx_failpoint_armed;
static char armed_name[96];
static int armed_left, armed_action;

size_t cx_failpoint_list(const cx_failpoint **first)
{
    *first = __start_cx_failpoints;
    return (size_t)(__stop_cx_failpoints - __start_cx_failpoints);
}

int cx_failpoint_arm(const char *name, int nth, int action)
{
    const cx_failpoint *first;
    size_t n = cx_failpoint_list(&first), i;
    if (action == 0) {
        cx_failpoint_armed = 0;
        return 0;
    }
    for (i = 0; i < n; i++)
        if (strcmp(first[i].name, name) == 0) break;
    if (i == n || strlen(name) >= sizeof armed_name || nth < 1) return -1;
    strcpy(armed_name, name);
    armed_left = nth;
    armed_action = action;
    cx_failpoint_armed = 1;
    return 0;
}

void cx_failpoint_hit(const char *name)
{
    if (strcmp(name, armed_name) != 0 || __atomic_sub_fetch(&armed_left, 1, __ATOMIC_RELAXED) != 0) return;
    cx_failpoint_armed = 0;
    kill(getpid(), armed_action == 2 ? SIGSTOP : SIGKILL);
    if (armed_action != 2)
        for (;;) pause(); /* the signal is on its way; no further store may happen */
}
#else
typedef int cx_failpoint_none; /* ISO C wants at least one declaration */
#endif
