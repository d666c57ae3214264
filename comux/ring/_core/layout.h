/* layout.h - what a topic's file looks like.
 *
 * One file per topic; every integer little-endian and naturally aligned; hot groups of fields on 128-byte lines of their own (two x86
 * lines because of the adjacent-line prefetch).
 *
 *   | superblock 4096 | control 4096 | process slots | ports | groups | delivery words | delivery times | descriptors | pool | pad to 64 KiB |
 *   | data (mapped twice) |
 *
 * Fields marked PRIMARY are the state: each change of the topic is one store to one of them. Everything else is derived from them by
 * cx_recover() or is a statistic. A record has one descriptor (metadata, one cache line) and its payload bytes; fixed slots and variable
 * records differ only in where the payload position comes from.
 *
 * Three numbers that are easily confused: N is the most records retained (what the user asked for), D >= N the number of descriptors (a
 * power of two, so that an offset becomes an index by a mask), C the bytes of the data region (a multiple of the page, so that it can be
 * mapped twice in a row and any record, and any run of records, is contiguous). `pos` is a virtual byte position that only grows; the
 * byte lives at pos % C.
 */
#ifndef CX_LAYOUT_H
#define CX_LAYOUT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define CX_MAGIC "COMUX\r\n\x1a"
#define CX_LAYOUT_MAJOR 2 /* 2: times of delivery behind the delivery words, pool, sealed descriptors */
#define CX_LAYOUT_MINOR 0
#define CX_BYTE_ORDER 0x01020304u
#define CX_LINE 128

enum { CX_VARIABLE = 0, CX_FIXED = 1 };
enum { CX_POLICY_WAIT = 0, CX_POLICY_DROP_OLDEST = 1, CX_POLICY_DROP_NEWEST = 2 };
enum { CX_OPT_ONE_WRITER = 1, CX_OPT_END_AUTO = 2, CX_OPT_SESSION = 4, CX_OPT_POOL = 8, CX_OPT_ALL = 15 };
#define CX_PINS_MAX 64

#define CX_NAME_BYTES 128
#define CX_SPEC_BYTES 3072
#define CX_RETIRED_AT 4032

typedef struct {
    char magic[8];
    uint16_t layout_major, layout_minor;
    uint32_t byte_order;
    uint32_t header_bytes, crc; /* crc32 of the first CX_RETIRED_AT bytes with this field 0 */
    uint64_t total_bytes;       /* compared with fstat */
    uint8_t boot_id[16];
    uint64_t created_ns;
    uint32_t creator_pid, page_size;
    uint16_t kind, policy;
    uint32_t options;
    uint64_t n_records, data_bytes, slot_stride, item_bytes;
    uint32_t max_procs, max_ports, max_groups, desc_stride;
    uint64_t off_control, off_procs, off_ports, off_groups, off_delivery, off_desc, off_data;
    uint64_t max_record, heartbeat_ns;
    char name[CX_NAME_BYTES];
    char spec[CX_SPEC_BYTES]; /* JSON: dtype, shape, user metadata; the Python side owns its content */
    uint64_t n_desc, first_offset, group_grace_ns;
    uint64_t n_slots, off_pool; /* pool only, else 0; see pool.c */
    uint32_t n_pins, look_back;
    uint8_t reserved[CX_RETIRED_AT - 3440];
    uint32_t retired; /* set when the file is unlinked; the only field that changes */
    uint8_t tail_pad[4096 - CX_RETIRED_AT - 4];
} cx_super;

static_assert(sizeof(cx_super) == 4096, "superblock");
static_assert(offsetof(cx_super, total_bytes) == 24 && offsetof(cx_super, n_records) == 72, "superblock");
static_assert(offsetof(cx_super, name) == 192 && offsetof(cx_super, retired) == CX_RETIRED_AT, "superblock");

#define CX_LINE_OF(...)   \
    struct {              \
        __VA_ARGS__       \
    } __attribute__((aligned(CX_LINE)))

/* state: epoch << 32 | flags; one word, so that ending an epoch and opening the next are one store each. */
#define CX_STATE_END 1u
#define CX_STATE_RESETTING 4u /* on_stale="reset" was begun: whoever attaches next does it again first */
#define CX_STATE_PAUSED 2u /* claims wait, or drop, until somebody resumes the topic; survives whoever paused it */

typedef struct {
    struct { /* the lock word: bit 31 waiters, 30..8 generation, 7..0 process slot + 1; 0 = free. PRIMARY */
        CX_LINE_OF(uint32_t lock; uint32_t takeovers; uint64_t port_seq;);
    };
    struct { /* head: next offset to claim. PRIMARY with several writers; one writer: head is published */
        CX_LINE_OF(uint64_t head; uint64_t data_head;);
    };
    struct { /* published: next offset to become readable. PRIMARY. aborted_below: low half of it << 32 | aborted records below it */
        CX_LINE_OF(uint64_t published; uint64_t last_key_plus1; uint64_t aborted_below;);
    };
    struct { /* tail: oldest retained offset. PRIMARY */
        CX_LINE_OF(uint64_t tail;);
    };
    struct { /* what a publisher looks at after each record: lossy readers (seq << 1 | W) and groups that sleep */
        CX_LINE_OF(uint32_t pub_ec; uint32_t pad_ec; uint64_t wake_min;);
    };
    struct { /* producers that wait for space */
        CX_LINE_OF(uint32_t space_ec; uint32_t space_nwait; uint64_t space_want;);
    };
    struct { /* state PRIMARY; end_offset: where the last ended epoch ends; writer: port + 1 of the one writer */
        CX_LINE_OF(uint64_t state; uint64_t end_offset; uint32_t writer; uint32_t begun;);
    };
    struct {
        CX_LINE_OF(uint64_t committed; uint64_t bytes; uint64_t aborted; uint64_t dropped_oldest; uint64_t dropped_newest;
                   uint64_t reaped; uint64_t blocked_ns; uint64_t suspensions;);
    };
} cx_control;

static_assert(sizeof(cx_control) == 8 * CX_LINE, "control");

typedef struct { /* belongs to whoever holds the kernel's lock on byte CX_SLOT_BYTE + i of the file */
    uint32_t gen, pid;
    uint64_t pid_ns, start_time, attached_ns;
    char command[32];
    uint8_t pad[64];
} cx_proc;

static_assert(sizeof(cx_proc) == CX_LINE, "process slot");

#define CX_SLOT_BYTE ((int64_t)1 << 40)
#define CX_LIFE_BYTE (CX_SLOT_BYTE - 1)

enum { CX_PORT_FREE = 0, CX_PORT_USED = 1 };
enum { CX_PORT_PRODUCER = 1, CX_PORT_MEMBER = 2, CX_PORT_READER = 3 };

typedef struct {
    uint32_t state; /* PRIMARY */
    uint32_t kind, owner, group;
    uint64_t id;
    uint32_t waiting, pad0;
    uint64_t n, bytes, blocked_ns, blocked_since, last_offset, last_ns, lost, acked, nacked, dropped, aborted, redelivered;
    char name[48];
    uint8_t pad1[80];
} cx_port;

static_assert(sizeof(cx_port) == 2 * CX_LINE, "port");

enum { CX_GROUP_FREE = 0, CX_GROUP_USED = 1 };
enum { CX_GROUP_DURABLE = 1, CX_GROUP_SUSPENDED = 2, CX_GROUP_PAUSED = 4 /* takes wait */ };
#define CX_NOWHERE UINT64_MAX

typedef struct {
    struct { /* next: first offset no member ever took; done: everything below is finished. Both PRIMARY, like state */
        CX_LINE_OF(uint32_t state; uint32_t flags; uint64_t next; uint64_t done; uint64_t start; uint32_t nred; uint32_t nmembers;
                   uint64_t unattended_ns;);
    };
    struct { /* who must be told: hole_*: the record whose ack takes the lock; wake_at: published at which a sleeper is due */
        CX_LINE_OF(uint32_t ec; uint32_t nwait; uint64_t wake_at; uint64_t hole_space; uint64_t hole_end;);
    };
    struct {
        CX_LINE_OF(uint64_t delivered; uint64_t acked; uint64_t redelivered; uint64_t lost; char name[48];
                   /* a record that was delivered max_deliveries times (0: never) is a dead letter; bury_*: see cx_bury */
                   uint64_t dead_letters; uint64_t bury_at; uint64_t bury_count; uint32_t max_deliveries;);
    };
} cx_group;

static_assert(sizeof(cx_group) == 3 * CX_LINE, "group");

/* Delivery word, one per (group, descriptor): bits 0-1 state, 2-13 delivery count (saturating), 14-31 port. Means something only for
 * done <= offset < next. The count rises at STARTED, so that a poison record does not charge the neighbours prefetched with it. */
enum { CX_PREFETCHED = 0, CX_STARTED = 1, CX_RED = 2, CX_ACKED = 3 };
#define CX_W_STATE(w) ((w)&3u)
#define CX_W_COUNT(w) (((w) >> 2) & 0xfffu)
#define CX_W_PORT(w) ((w) >> 14)
#define CX_W_MAKE(state, count, port) ((uint32_t)(state) | ((uint32_t)(count) << 2) | ((uint32_t)(port) << 14))

/* Delivery time, one per delivery word, u32: when the record was handed out, in milliseconds of the monotonic clock (cx_ticks), which wrap
 * after 49 days. Means something where the word is STARTED; stored before it. */

/* Descriptor word: offset << 3 | state. PRIMARY with several writers. */
enum { CX_CLAIMED = 1, CX_COMMITTED = 2, CX_ABORTED = 3 };
#define CX_D_WORD(offset, state) (((uint64_t)(offset) << 3) | (uint64_t)(state))

enum { CX_BIT_KEY = 1, CX_BIT_VALUE = 2, CX_BIT_APPEND = 4, CX_BITS = 7 }; /* above them: the seal, see cx_desc_seal */

typedef struct {
    uint64_t word;
    uint64_t pos;
    int64_t ts_ns;
    int64_t tag;
    uint32_t claim_len, val_len, hdr_len;
    uint32_t cum_aborted; /* aborted records below this offset */
    uint32_t producer;    /* low half of the port's id */
    uint16_t port, epoch; /* owner of the claim; low 16 bits of the epoch */
    uint16_t key_len, flags, bits, n_headers;
    /* second line, touched only where it is needed */
    int64_t append_ns; /* valid with CX_BIT_APPEND; else equal to ts_ns */
    uint8_t pad[56];
    /* fixed slots: key and headers follow here (desc_stride - sizeof(cx_desc) bytes) */
} cx_desc;

static_assert(offsetof(cx_desc, append_ns) == 64 && sizeof(cx_desc) == 128, "descriptor");
#define CX_FIXED_AUX 192

/* Pool: where slots go to and come from. pins PRIMARY: owner << 32 | slot + 1, 0 free; taken and given back without the lock. The rest is
 * derived and belongs to the holder of the lock, or to the one writer: what is free (taken from the end) and what is only kept for pins. */
typedef struct {
    struct {
        CX_LINE_OF(uint32_t n_free; uint32_t n_limbo;);
    };
    uint64_t pins[CX_PINS_MAX];
} cx_pool; /* behind it, u32 each: n_slots free slots, n_slots in limbo */

static_assert(sizeof(cx_pool) == CX_LINE + 8 * CX_PINS_MAX, "pool");

/* Variable records: [value][pad to 8][key][headers], the claim rounded up to 64: the value first, because a claim is filled before its
 * headers are known. Headers: u32 name length, u32 value length (CX_NO_VALUE for None), name (UTF-8), value; in order, unaligned. */
#define CX_ROUND8(x) (((uint64_t)(x) + 7) & ~(uint64_t)7)
#define CX_NO_VALUE UINT32_MAX
#define CX_ROUND64(x) (((uint64_t)(x) + 63) & ~(uint64_t)63)

#endif
