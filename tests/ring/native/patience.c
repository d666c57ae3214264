/* patience.c - how long a sleep may take: what is held by somebody, who may die with it, and in a group of several.
 *
 *   patience PLACE
 */
#define _GNU_SOURCE
#include "work.h"

int main(int argc, char **argv)
{
    char path[4096];
    cx_att *a;
    cx_member m, fellow;
    cx_producer p;
    uint64_t offset;
    uint8_t value[8] = {0};
    MUST(argc == 2, "patience PLACE");
    snprintf(path, sizeof path, "%s/patience.ring", argv[1]);
    cx_config k = {.name = "patience", .spec = "{}", .n = 8, .data_bytes = 65536, .item_bytes = 8, .kind = CX_FIXED, .max_procs = 4, .max_ports = 8,
                   .max_groups = 2, .heartbeat_ns = 100, .group_grace_ns = 10000000000ull, .path = path};
    MUST(cx_create(&k, &a) == CX_OK, "creating");
    MUST(work_join(a, "g", false, true, &m) == CX_OK, "member");
    MUST(cx_producer_open(a, "producer", &p) == CX_OK, "producer");
    const cx_group *g = &a->groups[m.group];

    cx_wait w = {.max_ns = 100};
    MUST(cx_patience(a, g) == 10 && cx_patience(a, NULL) == 10, "nothing is held");
    for (int i = 0; i < 10; i++) cx_wait_expired(a, &w, cx_patience(a, g));
    MUST(w.max_ns == 1000, "slices double up to ten heartbeats");

    MUST(work_join(a, "g", false, true, &fellow) == CX_OK, "fellow");
    MUST(cx_patience(a, g) == 2, "a fellow may be woken alone, and die");
    MUST(cx_slice(a, &w, cx_patience(a, g)) == 200, "a wait that goes on with long slices sleeps no longer than that");

    MUST(work_put(&p, value, sizeof value, 0, false, &offset) >= 0 && work_take(&fellow, 0, &offset) == CX_OK, "a record is held");
    MUST(cx_patience(a, g) == 1 && cx_patience(a, NULL) == 10, "by a member: its fellows look each heartbeat");
    cx_wait_expired(a, &w, cx_patience(a, g));
    MUST(w.max_ns == 100, "and slices begin anew");
    MUST(cx_ack(&fellow, offset, 1, 0) == CX_OK, "ack");

    cx_wait claim = {0};
    cx_slot slot;
    uint64_t size = 8;
    MUST(cx_claim(&p, 1, &size, &claim, false, 0, &slot) == CX_OK, "a claim is open");
    MUST(cx_patience(a, g) == 1 && cx_patience(a, NULL) == 1, "by a producer: everybody looks each heartbeat");

    cx_producer_close(&p, false);
    cx_member_close(&fellow);
    cx_member_close(&m);
    cx_detach(a);
    cx_unmap(a);
    MUST(cx_unlink(path, false) == CX_OK, "removing");
    return 0;
}
