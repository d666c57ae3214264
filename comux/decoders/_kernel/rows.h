/* Rows of pixels with one instruction set: out of planes, or out of the lines that resizing made of them. A template;
 * set.h includes it and says with what. */

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

/* ---- out of lines ----------------------------------------------------------------------------------------------- */

/* Luma of BYTES / 2 even or odd pixels from x on, times its coefficient. */
TARGET static inline __attribute__((always_inline)) W ISA(line_luma)(const comux_picture *p, const uint16_t *y)
{
    W luma;
    memcpy(&luma, y, sizeof luma);
    return MULHRS(luma, ISA(splat)(p->m.y));
}

/* BYTES / 2 even or odd pixels, each with chroma of its own. */
TARGET static inline __attribute__((always_inline)) void ISA(line_half)(const comux_picture *p, const comux_lines *l,
                                                                       ptrdiff_t x, W *b, W *g, W *r)
{
    UW u, v;
    memcpy(&u, l->u + x, sizeof u);
    memcpy(&v, l->v + x, sizeof v);
    W luma = ISA(line_luma)(p, l->y + x), du = (W)((u - 0x4000) << 1), dv = (W)((v - 0x4000) << 1);
    W green = MULHRS(du, ISA(splat)(p->m.gu)) + MULHRS(dv, ISA(splat)(p->m.gv));
    *b = (luma + (MULHRS(du, ISA(splat)(p->m.bu)) + p->m.b0)) >> 5;
    *g = (luma + (green + p->m.g0)) >> 5;
    *r = (luma + (MULHRS(dv, ISA(splat)(p->m.rv)) + p->m.r0)) >> 5;
}

/* BYTES pixels, the first one the line's 2 * x-th. */
TARGET static inline __attribute__((always_inline)) void ISA(line_block)(const comux_picture *p, const comux_lines *l,
                                                                        ptrdiff_t x, uint8_t *out, int stream)
{
    W be, ge, re, bo, go, ro;
    ISA(line_half)(p, l, x, &be, &ge, &re);
    ISA(line_half)(p, l, l->half + x, &bo, &go, &ro);
    if (p->rgb)
        STORE(out, re, ro, ge, go, be, bo, stream);
    else
        STORE(out, be, bo, ge, go, re, ro, stream);
}

TARGET static inline __attribute__((always_inline)) W ISA(line_gray)(const comux_picture *p, const uint16_t *y)
{
    W gray = (ISA(line_luma)(p, y) + p->m.b0) >> 5;
    W over = gray > 255;
    gray &= ~(gray < 0);
    return (gray & ~over) | (over & 255);
}

TARGET static inline __attribute__((always_inline)) void ISA(gray_block)(const comux_picture *p, const comux_lines *l,
                                                                        ptrdiff_t x, uint8_t *out)
{
    W both = ISA(line_gray)(p, l->y + x) | ISA(line_gray)(p, l->y + l->half + x) << 8;
    memcpy(out, &both, sizeof both);
}

TARGET static void ISA(line_pixels)(const comux_picture *p, const comux_lines *l, uint8_t *out, int stream)
{
    uint8_t last[3 * BYTES];
    ptrdiff_t x = 0, whole = p->out_width - BYTES, channels = l->u == NULL ? 1 : 3;
    if (l->u == NULL)
        for (; x <= whole; x += BYTES)
            ISA(gray_block)(p, l, x / 2, out + x);
    else if (stream)
        for (; x <= whole; x += BYTES)
            ISA(line_block)(p, l, x / 2, out + 3 * x, 1);
    else
        for (; x <= whole; x += BYTES)
            ISA(line_block)(p, l, x / 2, out + 3 * x, 0);
    if (x == p->out_width)
        return;
    /* The rest is a part of a block whose inputs are in the padding. */
    if (l->u == NULL)
        ISA(gray_block)(p, l, x / 2, last);
    else
        ISA(line_block)(p, l, x / 2, last, 0);
    memcpy(out + channels * x, last, (size_t)(channels * (p->out_width - x)));
}
