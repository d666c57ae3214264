/* fuzz_loop.c - a small coverage-guided fuzzer for compilers without libFuzzer: gcc's -fsanitize-coverage=trace-pc is all it needs.
 *
 *   PROGRAM CORPUS SECONDS SEED    inputs that reached something new are kept in the folder CORPUS, and read from it at the start
 *   PROGRAM CORPUS FILE            one input, again
 *
 * The compiler calls __sanitizer_cov_trace_pc at every edge; how often each was passed (in powers of two) is the coverage. An input that
 * passes an edge, or passes it an order of magnitude more often, is kept and changed further. The input at work stands in CORPUS/current, which is
 * left behind by a crash, an abort or the alarm after 20 s of one input.
 */
#define _GNU_SOURCE
#include "work.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAP 65536
#define LARGEST 256
#define KEPT_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_cov_trace_pc(void);

static uint8_t passed[MAP], seen[MAP];

__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void)
{
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    uint8_t *at = &passed[(pc ^ pc >> 16) % MAP];
    if (*at != 255) ++*at;
}

typedef struct {
    uint8_t data[LARGEST];
    size_t size;
} input;

static input kept[KEPT_MAX];
static size_t n_kept, n_edges;
static char corpus[400];
static uint8_t *current; /* mapped: what a crash leaves is what was at work */

static uint8_t order(uint8_t n) { return n == 0 ? 0 : (uint8_t)(1u << (31 - __builtin_clz((unsigned)n))); }

static bool try(const input *in)
{
    bool fresh = false;
    memcpy(current + 8, in->data, in->size);
    memcpy(current, &in->size, 8);
    memset(passed, 0, sizeof passed);
    alarm(20);
    LLVMFuzzerTestOneInput(in->data, in->size);
    alarm(0);
    for (size_t i = 0; i < MAP; i++) {
        uint8_t bit = order(passed[i]);
        if (!(bit & ~seen[i])) continue;
        n_edges += seen[i] == 0;
        seen[i] |= bit;
        fresh = true;
    }
    return fresh;
}

static void keep(const input *in)
{
    char path[450];
    if (n_kept == KEPT_MAX) return;
    snprintf(path, sizeof path, "%s/input-%zu", corpus, n_kept);
    kept[n_kept++] = *in;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0 && write(fd, in->data, in->size) == (ssize_t)in->size, "writing %s", path);
    close(fd);
}

static bool load(const char *path, input *in)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0) return false;
    ssize_t n = read(fd, in->data, LARGEST);
    close(fd);
    in->size = n > 0 ? (size_t)n : 0;
    return n > 0;
}

static const uint64_t interesting[] = {0, 1, 2, 3, 7, 8, 63, 64, 255, 256, 0xffff, 0x10000, 0x7fffffff, 0xffffffff, 1ull << 32, 1ull << 61, UINT64_MAX - 1, UINT64_MAX};

/* A change of the topic's bytes, at a place where there is something: the superblock is large and mostly text. */
static void add_change(input *in, uint64_t *random)
{
    uint32_t where = next_random(random) % 10, n = 1u << next_random(random) % 4;
    uint32_t at = where < 2 ? next_random(random) % 256 : where < 5 ? 4096 + next_random(random) % 1024 : 8192 + next_random(random) % 8192;
    uint64_t value = next_random(random) % 2 ? interesting[next_random(random) % (sizeof interesting / sizeof *interesting)] : next_random(random);
    if (in->size + 3 + n > LARGEST) return;
    at &= ~(n - 1);
    uint8_t *to = in->data + in->size;
    to[0] = (uint8_t)at;
    to[1] = (uint8_t)(at >> 8);
    to[2] = (uint8_t)(n - 1);
    memcpy(to + 3, &value, n);
    in->size += 3 + n;
}

static void change(input *in, uint64_t *random)
{
    for (uint32_t times = 1 + next_random(random) % 3; times--;) {
        uint32_t kind = next_random(random) % 8;
        if (in->size < 5 || kind < 3) {
            add_change(in, random);
        } else if (kind < 6) {
            in->data[next_random(random) % in->size] ^= (uint8_t)(1u << next_random(random) % 8);
        } else if (kind == 6) {
            in->data[0] = (uint8_t)(next_random(random) & (next_random(random) % 8 ? 3 : 15));
        } else { /* the beginning of another one */
            const input *other = &kept[next_random(random) % n_kept];
            size_t n = 1 + next_random(random) % other->size;
            memcpy(in->data, other->data, n);
            if (n > in->size) in->size = n;
        }
    }
}

static void start(void)
{
    input in;
    struct dirent *entry;
    DIR *folder = opendir(corpus);
    MUST(folder, "no folder %s", corpus);
    static input old[KEPT_MAX];
    size_t n = 0;
    while ((entry = readdir(folder)) && n < KEPT_MAX) {
        char path[700];
        snprintf(path, sizeof path, "%s/%s", corpus, entry->d_name);
        if (strncmp(entry->d_name, "input-", 6) == 0 && load(path, &old[n])) n++;
    }
    closedir(folder);
    for (size_t i = 0; i < n; i++)
        if (try(&old[i])) keep(&old[i]);
    for (uint8_t flags = 0; flags < 4; flags++) { /* seeds: each kind, with a byte of the padding changed */
        in = (input){{flags, 0xf0, 0x0f, 0, 0}, 5};
        if (try(&in) || !n_kept) keep(&in);
    }
}

int main(int argc, char **argv)
{
    char path[450];
    if (argc < 3) {
        fprintf(stderr, "%s CORPUS SECONDS SEED | CORPUS FILE\n", argv[0]);
        return 2;
    }
    snprintf(corpus, sizeof corpus, "%s", argv[1]);
    snprintf(path, sizeof path, "%s/current", corpus);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    MUST(fd >= 0 && ftruncate(fd, 8 + LARGEST) == 0, "no file %s", path);
    current = mmap(NULL, 8 + LARGEST, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(current != MAP_FAILED, "mapping %s", path);
    if (argc == 3) {
        input in;
        MUST(load(argv[2], &in), "no input in %s", argv[2]);
        LLVMFuzzerTestOneInput(in.data, in.size);
        return 0;
    }
    uint64_t random = strtoull(argv[3], NULL, 10) * 2 + 1, tried = 0;
    int64_t until = cx_now_ns() + (int64_t)(atof(argv[2]) * 1e9);
    start();
    size_t first_edges = n_edges, first_kept = n_kept;
    for (; cx_now_ns() < until; tried++) {
        input in = kept[next_random(&random) % n_kept];
        change(&in, &random);
        if (try(&in)) keep(&in);
    }
    unlink(path);
    printf("%llu inputs tried, %zu edges (%zu at the start), %zu inputs kept (%zu)\n", (unsigned long long)tried, n_edges, first_edges, n_kept, first_kept);
    return 0;
}
