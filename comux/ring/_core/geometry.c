/* geometry.c - the superblock: from a configuration to a layout, and from a file to the certainty that it is one of ours.
 *
 * Every offset and size is a function of a few numbers; attaching computes them anew and compares, so that a file that passes has no
 * address in its superblock that could lead outside of it.
 */
#define _GNU_SOURCE
#include "core.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

uint32_t cx_crc32(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    while (n--) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

uint32_t cx_super_crc(const cx_super *s)
{
    cx_super copy = *s;
    copy.crc = 0;
    return cx_crc32(&copy, CX_RETIRED_AT);
}

void cx_boot_id(uint8_t out[16])
{
    char text[64] = {0};
    memset(out, 0, 16);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    for (ssize_t i = 0, nibble = 0; i < n && nibble < 32; i++) {
        int v = text[i] >= '0' && text[i] <= '9' ? text[i] - '0' : text[i] >= 'a' && text[i] <= 'f' ? text[i] - 'a' + 10 : -1;
        if (v < 0) continue;
        out[nibble / 2] |= (uint8_t)(nibble & 1 ? v : v << 4);
        nibble++;
    }
}

/* -- geometry -------------------------------------------------------------------------------------------------------------------- */

static uint64_t round_up(uint64_t x, uint64_t to) { return (x + to - 1) / to * to; }

static uint64_t gcd(uint64_t x, uint64_t y)
{
    while (y) {
        uint64_t rest = x % y;
        x = y;
        y = rest;
    }
    return x;
}

/* Slots stand back to back wherever that is not dear, because then any batch is one contiguous array; the data region must be a whole number
 * of pages to be mapped twice in a row, which with odd sizes wants extra slots. Where that is dear each slot gets whole pages instead. */
static void fixed_geometry(uint64_t item, uint64_t n, uint64_t page, uint64_t *stride, uint64_t *bytes)
{
    uint64_t step = page / gcd(item, page);
    uint64_t packed = round_up(n, step) * item, paged = n * round_up(item, page);
    bool cheap = packed - n * item <= n * item / 8 || packed - n * item <= 1 << 20;
    *stride = cheap || packed <= paged ? item : round_up(item, page);
    *bytes = *stride == item ? packed : paged;
}

static void geometry(cx_super *s)
{
    uint64_t n_desc = 2;
    while (n_desc < s->n_records) n_desc *= 2;
    s->n_desc = n_desc;
    s->desc_stride = sizeof(cx_desc) + (s->kind == CX_FIXED ? CX_FIXED_AUX : 0);
    s->off_control = 4096;
    s->off_procs = 8192;
    s->off_ports = s->off_procs + (uint64_t)s->max_procs * sizeof(cx_proc);
    s->off_groups = s->off_ports + (uint64_t)s->max_ports * sizeof(cx_port);
    s->off_delivery = s->off_groups + (uint64_t)s->max_groups * sizeof(cx_group);
    s->off_desc = round_up(s->off_delivery + (uint64_t)s->max_groups * n_desc * 8, CX_LINE);
    uint64_t end = s->off_desc + n_desc * s->desc_stride;
    if (s->options & CX_OPT_POOL) {
        s->n_slots = s->data_bytes / s->slot_stride;
        s->off_pool = round_up(end, CX_LINE);
        end = s->off_pool + sizeof(cx_pool) + 2 * s->n_slots * sizeof(uint32_t);
    }
    s->off_data = round_up(end, 65536);
    s->total_bytes = s->off_data + s->data_bytes;
}

void cx_super_from(const cx_config *k, cx_super *s)
{
    memset(s, 0, sizeof *s);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    memcpy(s->magic, CX_MAGIC, 8);
    s->layout_major = CX_LAYOUT_MAJOR;
    s->layout_minor = CX_LAYOUT_MINOR;
    s->byte_order = CX_BYTE_ORDER;
    s->header_bytes = sizeof(cx_super);
    cx_boot_id(s->boot_id);
    s->created_ns = (uint64_t)cx_wall_ns();
    s->creator_pid = (uint32_t)getpid();
    s->page_size = (uint32_t)page;
    s->kind = (uint16_t)k->kind;
    s->policy = (uint16_t)k->policy;
    s->options = k->options;
    s->n_records = k->n;
    s->item_bytes = k->item_bytes;
    if (k->options & CX_OPT_POOL) {
        s->n_pins = k->pins;
        s->look_back = k->look_back;
    }
    if (k->kind == CX_FIXED)
        fixed_geometry(k->item_bytes, k->n + s->n_pins, page, &s->slot_stride, &s->data_bytes);
    else
        s->data_bytes = round_up(k->data_bytes, page > 65536 ? page : 65536);
    s->max_procs = k->max_procs;
    s->max_ports = k->max_ports;
    s->max_groups = k->max_groups;
    s->max_record = k->max_record ? k->max_record : s->data_bytes;
    if (s->max_record > s->data_bytes) s->max_record = s->data_bytes;
    if (s->max_record > 0xffffffc0u) s->max_record = 0xffffffc0u;
    s->heartbeat_ns = k->heartbeat_ns;
    s->first_offset = k->first_offset;
    s->group_grace_ns = k->group_grace_ns;
    if (k->name) snprintf(s->name, sizeof s->name, "%s", k->name);
    if (k->spec) snprintf(s->spec, sizeof s->spec, "%s", k->spec);
    geometry(s);
    s->crc = cx_super_crc(s);
}

uint64_t cx_required_bytes(const cx_config *k)
{
    cx_super s;
    cx_super_from(k, &s);
    return s.total_bytes;
}

int cx_check_super(const cx_super *s, const char *path, uint64_t file_bytes)
{
    uint8_t boot[16];
    cx_super want = *s;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (memcmp(s->magic, CX_MAGIC, 8) != 0) return cx_fail(CX_ELAYOUT, "%s is not a comux topic (its magic differs); remove the file", path);
    if (s->byte_order != CX_BYTE_ORDER || s->layout_major != CX_LAYOUT_MAJOR)
        return cx_fail(CX_ELAYOUT, "%s has layout %u.%u, this comux reads %u.x; stop what made it and remove the topic, or use that version", path,
                       s->layout_major, s->layout_minor, CX_LAYOUT_MAJOR);
    if (s->options & ~(uint32_t)CX_OPT_ALL)
        return cx_fail(CX_ELAYOUT, "%s has layout %u.%u with options this comux does not know (%u.%u); use the version that made it, or remove the topic", path,
                       s->layout_major, s->layout_minor, CX_LAYOUT_MAJOR, CX_LAYOUT_MINOR);
    if (s->header_bytes != sizeof(cx_super) || s->crc != cx_super_crc(s))
        return cx_fail(CX_ECORRUPT, "%s: the superblock's checksum is wrong; remove the topic", path);
    cx_boot_id(boot);
    if (memcmp(boot, s->boot_id, 16) != 0)
        return cx_fail(CX_ELAYOUT, "%s was made before the last boot and cannot be resumed; remove the topic and create it anew", path);
    if (s->page_size % page && page % s->page_size)
        return cx_fail(CX_ELAYOUT, "%s was made with pages of %u bytes, this system has %lu; create it anew", path, s->page_size, (unsigned long)page);
    bool sane = s->n_records >= 1 && s->n_records <= 1u << 24 && s->data_bytes >= page && s->data_bytes % page == 0 &&
                s->data_bytes <= (uint64_t)1 << 40 && s->max_procs >= 1 && s->max_procs <= 255 && s->max_ports >= 1 && s->max_ports <= 4096 &&
                s->max_groups >= 1 && s->max_groups <= 64 && s->kind <= CX_FIXED && s->policy <= CX_POLICY_DROP_NEWEST &&
                s->max_record <= s->data_bytes && s->heartbeat_ns >= 1000000 && s->name[CX_NAME_BYTES - 1] == 0 && s->spec[CX_SPEC_BYTES - 1] == 0;
    if (sane && s->kind == CX_FIXED)
        sane = s->slot_stride >= s->item_bytes && s->item_bytes && s->n_pins <= CX_PINS_MAX && s->slot_stride * (s->n_records + s->n_pins) <= s->data_bytes &&
               s->data_bytes % s->slot_stride == 0 && s->look_back <= s->n_records;
    if (sane && (s->options & CX_OPT_POOL)) sane = s->kind == CX_FIXED && s->n_pins;
    if (sane) geometry(&want); /* not before: its loop and its sums rely on the limits */
    if (!sane || memcmp(&want, s, sizeof want) != 0 || file_bytes != s->total_bytes)
        return cx_fail(CX_ECORRUPT, "%s: the superblock contradicts itself or the file's size (%llu bytes, %llu expected); remove the topic", path,
                       (unsigned long long)file_bytes, (unsigned long long)s->total_bytes);
    return CX_OK;
}
