/* One or two rows of pixels with one instruction set. A template: pixels.c includes it once for each, with
 *
 *   ISA(name)      the name with the set's suffix
 *   TARGET         function attribute that allows the set
 *   BYTES          vector size in bytes, which is also the number of pixels done at once
 *   MULHRS(a, b)   (a * b + 2^14) >> 15 in 16-bit lanes, all of it or nothing rounded differently
 *   STORE(...)     interleaves three channels of even and odd pixels and stores 3 * BYTES bytes
 */

typedef int16_t ISA(words) __attribute__((vector_size(BYTES)));
typedef uint16_t ISA(uwords) __attribute__((vector_size(BYTES)));
typedef uint8_t ISA(half) __attribute__((vector_size(BYTES / 2)));

#define W ISA(words)
#define UW ISA(uwords)

TARGET static inline __attribute__((always_inline)) W ISA(splat)(int16_t x)
{
    return (W){0} + x;
}

/* y: BYTES luma bytes; chroma terms hold one lane for each pair of pixels. */
TARGET static inline __attribute__((always_inline)) void ISA(pixels)(const uint8_t *y, uint8_t *out, W cb, W cg, W cr,
                                                                    W cy, int rgb, int stream)
{
    UW luma;
    memcpy(&luma, y, sizeof luma);
    __builtin_prefetch(y + 512);
    W even = MULHRS((W)((luma & 0xff) << 7), cy);
    W odd = MULHRS((W)((luma & 0xff00) >> 1), cy);
    W be = (even + cb) >> 5, bo = (odd + cb) >> 5;
    W ge = (even + cg) >> 5, go = (odd + cg) >> 5;
    W re = (even + cr) >> 5, ro = (odd + cr) >> 5;
    if (rgb)
        STORE(out, re, ro, ge, go, be, bo, stream);
    else
        STORE(out, be, bo, ge, go, re, ro, stream);
}

/* Pixels [x, x + BYTES) of both rows; x is even. */
TARGET static inline __attribute__((always_inline)) void ISA(block)(const comux_picture *p, const row_pair *r,
                                                                   ptrdiff_t x, int nv, int stream)
{
    UW u, v;
    if (nv) {
        UW both;
        memcpy(&both, r->u + x, sizeof both);
        u = both << 8;
        v = both & 0xff00;
    } else {
        ISA(half) hu, hv;
        memcpy(&hu, r->u + x / 2, sizeof hu);
        memcpy(&hv, r->v + x / 2, sizeof hv);
        u = __builtin_convertvector(hu, UW) << 8;
        v = __builtin_convertvector(hv, UW) << 8;
        __builtin_prefetch(r->v + x / 2 + 256);
    }
    __builtin_prefetch(r->u + x / (2 - nv) + 256 * (1 + nv));
    W du = (W)(u ^ 0x8000), dv = (W)(v ^ 0x8000);
    W cb = MULHRS(du, ISA(splat)(p->m.bu)) + p->m.b0;
    W cg = MULHRS(du, ISA(splat)(p->m.gu)) + MULHRS(dv, ISA(splat)(p->m.gv)) + p->m.g0;
    W cr = MULHRS(dv, ISA(splat)(p->m.rv)) + p->m.r0;
    W cy = ISA(splat)(p->m.y);
    ISA(pixels)(r->y0 + x, r->out0 + 3 * x, cb, cg, cr, cy, p->rgb, stream);
    if (r->y1 != NULL)
        ISA(pixels)(r->y1 + x, r->out1 + 3 * x, cb, cg, cr, cy, p->rgb, stream);
}

TARGET static inline __attribute__((always_inline)) void ISA(line)(const comux_picture *p, const row_pair *r, int nv,
                                                                  int stream)
{
    ptrdiff_t x = 0;
    for (; x + BYTES <= p->width; x += BYTES)
        ISA(block)(p, r, x, nv, stream);
    if (x < p->width && p->width >= BYTES) {
        /* The rest: the last block once more, further to the right, on an even pixel; it overlaps what is done. */
        x = (p->width - BYTES) & ~(ptrdiff_t)1;
        ISA(block)(p, r, x, nv, 0);
        x += BYTES;
    }
    if (x < p->width)
        scalar_pixels(p, r, x, nv);
}

TARGET static void ISA(rows)(const comux_picture *p, const row_pair *r, int stream)
{
    int nv = p->v == NULL;
    if (nv && stream)
        ISA(line)(p, r, 1, 1);
    else if (nv)
        ISA(line)(p, r, 1, 0);
    else if (stream)
        ISA(line)(p, r, 0, 1);
    else
        ISA(line)(p, r, 0, 0);
}

#undef W
#undef UW
#undef ISA
#undef TARGET
#undef BYTES
#undef MULHRS
#undef STORE
