/* fuzz_attach.c - one input of a fuzzer: what is changed in a topic's file before somebody attaches to it and uses it.
 *
 * An input is one byte of flags and then changes: place (2 bytes, little-endian), number of bytes (1 to 8, in the low three bits of the third
 * byte), the bytes. Flags: bit 0 fixed slots, bit 1 one writer, bit 2 leave the checksum of the superblock wrong where the changes made it so
 * (else it is made right, or nothing behind it would ever be reached), bit 3 cut the file after the place of the first change.
 * What it looks for are crashes and hangs. Records are used and not compared: the seal finds any one changed byte (damage.c), of wider damage all but
 * one in 4096; a superblock with a right checksum is believed, and so are positions that agree with each other.
 *
 * Called by libFuzzer, where the compiler has it, or by fuzz_loop.c.
 */
#define _GNU_SOURCE
#include "damaged.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static topic topics[4];

static const char *place(void)
{
    const char *given = getenv("COMUX_FUZZ_PLACE");
    return given ? given : "/dev/shm";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4) return 0;
    topic *t = &topics[data[0] & 3];
    if (!t->bytes) topic_make(t, place(), data[0] & 1, data[0] & 2);
    int fd = topic_restore(t);
    t->loose = true;
    size_t cut = data[1] | (size_t)data[2] << 8;
    for (size_t i = 1; i + 3 < size;) {
        size_t at = data[i] | (size_t)data[i + 1] << 8, n = 1 + (data[i + 2] & 7);
        i += 3;
        if (n > size - i) n = size - i;
        MUST(pwrite(fd, data + i, n, (off_t)at) == (ssize_t)n, "writing");
        i += n;
    }
    if (!(data[0] & 4)) {
        cx_super s;
        MUST(pread(fd, &s, sizeof s, 0) == (ssize_t)sizeof s, "reading");
        s.crc = cx_super_crc(&s);
        MUST(pwrite(fd, &s, sizeof s, 0) == (ssize_t)sizeof s, "writing");
    }
    if (data[0] & 8) MUST(ftruncate(fd, (off_t)cut) == 0, "cutting");
    close(fd);
    use(t);
    unlink(t->path);
    return 0;
}
