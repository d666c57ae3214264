/* YUV to BGR in one pass over the picture, and the instruction sets; resize.c is for arrays of another size.
 *
 * Problem. A 1080p picture is 3.1 MB of planes and 6.2 MB of array; the machine needs about 0.4 ms to move that much,
 * so the arithmetic has to fit beside the memory traffic, and must be right to less than one unit.
 *
 * Arithmetic. 16-bit lanes throughout. With mulhrs(a, b) = (a * b + 2^14) >> 15, which every vector unit has:
 *     luma    a = Y << 7           b = coefficient * 2^13     a product in units of 2^-5
 *     chroma  a = (C - 128) << 8   b = coefficient * 2^12     a product in units of 2^-5
 *     B = (luma + chroma term + offset) >> 5, clamped to 0..255; the offset holds -16 * coefficient (limited range)
 *     and the half that makes the shift round.
 * The largest sum is 32 * 546 (BT.2020, limited), far from overflow. Each product is right to half a unit of 2^-5, so a
 * result differs from the exact one, rounded, only where that lies within 0.05 of a rounding edge, and then by one.
 * Every instruction set computes exactly this: their outputs are equal bit for bit.
 *
 * Chroma is replicated to the 2x2 (4:2:0) or 2x1 (4:2:2) luma samples it belongs to, as libswscale's default does.
 *
 * Order. Row pairs top to bottom, so that each chroma row is read and multiplied once. Even and odd pixels are separate
 * vectors (masking and shifting 16-bit lanes does it), so that one chroma lane serves both. Interleaving: byte j = 3p + c
 * of the output belongs to pixel p, channel c. Modulo a power of two N, p -> 3p + c is one-to-one, so one permutation
 * per channel puts each of its N bytes where it stands in one of the three output vectors, and blends pick: channel
 * (k + i) mod 3 stands at byte i of output vector k.
 *
 * Stores go past the caches where the output is aligned for it and too large to stay in them anyway.
 *
 * Bounds. A block reads and writes exactly its pixels; the last one is moved left to end at the picture's edge; pictures
 * narrower than a block are done by scalar_pixels. Nothing is read or written beside the picture.
 */
#include "kernel.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#define HAVE_X86 1
#include <immintrin.h>
#endif

/* Outputs from this size on do not fit beside everything else in a core's cache: stores may go past it. */
#define STREAM_FROM_BYTES (1 << 20)

static inline int mulhrs(int a, int b)
{
    return (a * b + 0x4000) >> 15;
}

static inline uint8_t clamp(int x)
{
    return x < 0 ? 0 : x > 255 ? 255 : (uint8_t)x;
}

static void scalar_row(const comux_picture *p, const uint8_t *y, const row_pair *r, uint8_t *out, ptrdiff_t x, int nv)
{
    for (; x < p->width; x++) {
        ptrdiff_t c = x / 2;
        int u = ((nv ? r->u[2 * c] : r->u[c]) - 128) * 256;
        int v = ((nv ? r->u[2 * c + 1] : r->v[c]) - 128) * 256;
        int luma = mulhrs(y[x] << 7, p->m.y);
        uint8_t b = clamp((luma + mulhrs(u, p->m.bu) + p->m.b0) >> 5);
        uint8_t g = clamp((luma + mulhrs(u, p->m.gu) + mulhrs(v, p->m.gv) + p->m.g0) >> 5);
        uint8_t red = clamp((luma + mulhrs(v, p->m.rv) + p->m.r0) >> 5);
        out[3 * x] = p->rgb ? red : b;
        out[3 * x + 1] = g;
        out[3 * x + 2] = p->rgb ? b : red;
    }
}

/* Pixels from x to the end of both rows. */
static void scalar_pixels(const comux_picture *p, const row_pair *r, ptrdiff_t x, int nv)
{
    scalar_row(p, r->y0, r, r->out0, x, nv);
    if (r->y1 != NULL)
        scalar_row(p, r->y1, r, r->out1, x, nv);
}

/* ---- plain: the compiler's vectors, whatever the machine ------------------------------------------------------- */

typedef int16_t plain_w __attribute__((vector_size(16)));
typedef int32_t plain_wide __attribute__((vector_size(32)));

static inline __attribute__((always_inline)) plain_w plain_mulhrs(plain_w a, plain_w b)
{
    plain_wide product = __builtin_convertvector(a, plain_wide) * __builtin_convertvector(b, plain_wide);
    return __builtin_convertvector((product + 0x4000) >> 15, plain_w);
}

static inline __attribute__((always_inline)) plain_w plain_clamp(plain_w x)
{
    plain_w over = x > 255;
    x &= ~(x < 0);
    return (x & ~over) | (over & 255);
}

static inline __attribute__((always_inline)) void plain_store(uint8_t *out, plain_w ae, plain_w ao, plain_w be,
                                                              plain_w bo, plain_w ce, plain_w co)
{
    int16_t a[2][8], b[2][8], c[2][8];
    ae = plain_clamp(ae), ao = plain_clamp(ao), be = plain_clamp(be), bo = plain_clamp(bo), ce = plain_clamp(ce),
    co = plain_clamp(co);
    memcpy(a[0], &ae, 16), memcpy(a[1], &ao, 16), memcpy(b[0], &be, 16), memcpy(b[1], &bo, 16), memcpy(c[0], &ce, 16),
        memcpy(c[1], &co, 16);
    for (int i = 0; i < 16; i++) {
        out[3 * i] = (uint8_t)a[i & 1][i >> 1];
        out[3 * i + 1] = (uint8_t)b[i & 1][i >> 1];
        out[3 * i + 2] = (uint8_t)c[i & 1][i >> 1];
    }
}

static void plain_any_ratio(const comux_across *a, const uint16_t *in, uint16_t *out)
{
    for (ptrdiff_t i = 0; i < a->n; i++) {
        const int16_t *weights = a->weights + i / 4 * a->pairs * 8 + i % 4 * 2;
        int sum = 1 << 13;
        for (ptrdiff_t k = 0; k < a->pairs; k++, weights += 8) {
            const uint16_t *pair = in + a->first[i] + 2 * k;
            sum += (int16_t)pair[0] * weights[0] + (int16_t)pair[1] * weights[1];
        }
        out[i] = (uint16_t)(sum >> 14);
    }
}

#define ISA(name) plain_##name
#define NAME "plain"
#define TARGET
#define BYTES 16
#define MULHRS plain_mulhrs
#define STORE(out, ae, ao, be, bo, ce, co, stream) ((void)(stream), plain_store(out, ae, ao, be, bo, ce, co))
#define ANY_RATIO plain_any_ratio
#include "set.h"

#ifdef HAVE_X86
/* ---- x86: packus puts the even pixels of 16 first, then the odd ones ------------------------------------------- */

/* place[c][i]: where the byte that stands at byte i of an output vector is found in channel c after packus. */
static uint8_t place16[3][64] __attribute__((aligned(64))); /* for 128-bit lanes, repeated */
static uint8_t place64[3][64] __attribute__((aligned(64)));
static uint8_t pick16[3][64] __attribute__((aligned(64))); /* pick16[m][i]: 0xff where i mod 16 mod 3 == m */
static uint64_t pick64[3];                                 /* the same for 64 bytes, as bits */

static void make_tables(void)
{
    for (int c = 0; c < 3; c++) {
        for (int q = 0; q < 64; q++) {
            int p = q & 15, packed = (p & 1) * 8 + (p >> 1);
            place16[c][(q & ~15) + (3 * p + c) % 16] = (uint8_t)packed;
            place64[c][(3 * q + c) % 64] = (uint8_t)((q & ~15) + packed);
            pick16[c][q] = (q & 15) % 3 == c ? 0xff : 0;
            if (q % 3 == c)
                pick64[c] |= (uint64_t)1 << q;
        }
    }
}

#define SSE __attribute__((target("sse4.1")))
typedef int16_t sse_w __attribute__((vector_size(16)));

SSE static inline __attribute__((always_inline)) sse_w sse_mulhrs(sse_w a, sse_w b)
{
    return (sse_w)_mm_mulhrs_epi16((__m128i)a, (__m128i)b);
}

SSE static inline __attribute__((always_inline)) __m128i sse_channel(sse_w even, sse_w odd, int c)
{
    __m128i packed = _mm_packus_epi16((__m128i)even, (__m128i)odd);
    return _mm_shuffle_epi8(packed, _mm_load_si128((const __m128i *)place16[c]));
}

SSE static inline __attribute__((always_inline)) void sse_store(uint8_t *out, sse_w ae, sse_w ao, sse_w be, sse_w bo,
                                                                sse_w ce, sse_w co, int stream)
{
    __m128i a = sse_channel(ae, ao, 0), b = sse_channel(be, bo, 1), c = sse_channel(ce, co, 2);
    for (int k = 0; k < 3; k++) {
        __m128i is_b = _mm_load_si128((const __m128i *)pick16[(4 - k) % 3]);
        __m128i is_c = _mm_load_si128((const __m128i *)pick16[(5 - k) % 3]);
        __m128i done = _mm_blendv_epi8(_mm_blendv_epi8(a, b, is_b), c, is_c);
        if (stream)
            _mm_stream_si128((__m128i *)(void *)(out + 16 * k), done);
        else
            _mm_storeu_si128((__m128i *)(void *)(out + 16 * k), done);
    }
}

/* One pair of each of four pixels. */
SSE static inline __attribute__((always_inline)) __m128i sse_pairs(const uint16_t *in, const int32_t *first)
{
    int32_t pair[4];
    for (int i = 0; i < 4; i++)
        memcpy(&pair[i], in + first[i], 4);
    return _mm_set_epi32(pair[3], pair[2], pair[1], pair[0]);
}

SSE static inline __attribute__((always_inline)) void sse_fours(const comux_across *a, const uint16_t *in,
                                                               uint16_t *out, int near, ptrdiff_t pairs)
{
    const __m128i *weights = (const __m128i *)(const void *)a->weights;
    for (ptrdiff_t i = 0; i < a->n; i += 4) {
        __m128i sum = _mm_set1_epi32(1 << 13), order = _mm_setzero_si128();
        if (near)
            order = _mm_loadu_si128((const __m128i *)(const void *)(a->order + 4 * i));
        for (ptrdiff_t k = 0; k < pairs; k++) {
            const uint16_t *from = in + 2 * k;
            __m128i samples =
                near ? _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(from + a->first[i])), order)
                     : sse_pairs(from, a->first + i);
            sum = _mm_add_epi32(sum, _mm_madd_epi16(samples, _mm_loadu_si128(weights++)));
        }
        sum = _mm_srai_epi32(sum, 14);
        _mm_storel_epi64((__m128i *)(void *)(out + i), _mm_packus_epi32(sum, sum));
    }
}

SSE static void sse_any_ratio(const comux_across *a, const uint16_t *in, uint16_t *out)
{
    if (!a->near)
        sse_fours(a, in, out, 0, a->pairs);
    else if (a->pairs == 1)
        sse_fours(a, in, out, 1, 1);
    else if (a->pairs == 2)
        sse_fours(a, in, out, 1, 2);
    else
        sse_fours(a, in, out, 1, a->pairs);
}

#define ISA(name) sse_##name
#define NAME "sse4.1"
#define TARGET SSE
#define BYTES 16
#define MULHRS sse_mulhrs
#define STORE sse_store
#define ANY_RATIO sse_any_ratio
#include "set.h"

#define AVX2 __attribute__((target("avx2")))
typedef int16_t avx2_w __attribute__((vector_size(32)));

AVX2 static inline __attribute__((always_inline)) avx2_w avx2_mulhrs(avx2_w a, avx2_w b)
{
    return (avx2_w)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b);
}

AVX2 static inline __attribute__((always_inline)) __m256i avx2_channel(avx2_w even, avx2_w odd, int c)
{
    __m256i packed = _mm256_packus_epi16((__m256i)even, (__m256i)odd);
    return _mm256_shuffle_epi8(packed, _mm256_load_si256((const __m256i *)place16[c]));
}

AVX2 static inline __attribute__((always_inline)) __m256i avx2_pick(__m256i a, __m256i b, __m256i c, int k)
{
    __m256i is_b = _mm256_load_si256((const __m256i *)pick16[(4 - k) % 3]);
    __m256i is_c = _mm256_load_si256((const __m256i *)pick16[(5 - k) % 3]);
    return _mm256_blendv_epi8(_mm256_blendv_epi8(a, b, is_b), c, is_c);
}

AVX2 static inline __attribute__((always_inline)) void avx2_put(uint8_t *out, __m256i v, int stream)
{
    if (stream)
        _mm256_stream_si256((__m256i *)(void *)out, v);
    else
        _mm256_storeu_si256((__m256i *)(void *)out, v);
}

AVX2 static inline __attribute__((always_inline)) void avx2_store(uint8_t *out, avx2_w ae, avx2_w ao, avx2_w be,
                                                                  avx2_w bo, avx2_w ce, avx2_w co, int stream)
{
    __m256i a = avx2_channel(ae, ao, 0), b = avx2_channel(be, bo, 1), c = avx2_channel(ce, co, 2);
    /* Each half holds 16 pixels of its own: t0, t1, t2 of the lower half come first in memory, then the upper's. */
    __m256i t0 = avx2_pick(a, b, c, 0), t1 = avx2_pick(a, b, c, 1), t2 = avx2_pick(a, b, c, 2);
    avx2_put(out, _mm256_permute2x128_si256(t0, t1, 0x20), stream);
    avx2_put(out + 32, _mm256_blend_epi32(t2, t0, 0xf0), stream);
    avx2_put(out + 64, _mm256_permute2x128_si256(t1, t2, 0x31), stream);
}

/* Two fours at once. */
AVX2 static inline __attribute__((always_inline)) void avx2_fours(const comux_across *a, const uint16_t *in,
                                                                 uint16_t *out, ptrdiff_t pairs)
{
    const __m128i *weights = (const __m128i *)(const void *)a->weights;
    for (ptrdiff_t i = 0; i < a->n; i += 8, weights += 2 * pairs) {
        __m256i order = _mm256_loadu_si256((const __m256i *)(const void *)(a->order + 4 * i));
        __m256i sum = _mm256_set1_epi32(1 << 13);
        const uint16_t *low = in + a->first[i], *high = in + a->first[i + 4];
        for (ptrdiff_t k = 0; k < pairs; k++) {
            __m256i samples = _mm256_loadu2_m128i((const __m128i *)(const void *)(high + 2 * k),
                                                  (const __m128i *)(const void *)(low + 2 * k));
            __m256i w = _mm256_loadu2_m128i(weights + pairs + k, weights + k);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(samples, order), w));
        }
        sum = _mm256_srai_epi32(sum, 14);
        sum = _mm256_permute4x64_epi64(_mm256_packus_epi32(sum, sum), 0x08);
        _mm_storeu_si128((__m128i *)(void *)(out + i), _mm256_castsi256_si128(sum));
    }
}

AVX2 static void avx2_any_ratio(const comux_across *a, const uint16_t *in, uint16_t *out)
{
    if (!a->near)
        sse_any_ratio(a, in, out);
    else if (a->pairs == 1)
        avx2_fours(a, in, out, 1);
    else
        avx2_fours(a, in, out, a->pairs);
}

#define ISA(name) avx2_##name
#define NAME "avx2"
#define TARGET AVX2
#define BYTES 32
#define MULHRS avx2_mulhrs
#define STORE avx2_store
#define ANY_RATIO avx2_any_ratio
#include "set.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,prefer-vector-width=512")))
typedef int16_t avx512_w __attribute__((vector_size(64)));

AVX512 static inline __attribute__((always_inline)) avx512_w avx512_mulhrs(avx512_w a, avx512_w b)
{
    return (avx512_w)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b);
}

AVX512 static inline __attribute__((always_inline)) __m512i avx512_channel(avx512_w even, avx512_w odd, int c)
{
    __m512i packed = _mm512_packus_epi16((__m512i)even, (__m512i)odd);
    return _mm512_permutexvar_epi8(_mm512_load_si512(place64[c]), packed);
}

AVX512 static inline __attribute__((always_inline)) void avx512_store(uint8_t *out, avx512_w ae, avx512_w ao,
                                                                      avx512_w be, avx512_w bo, avx512_w ce,
                                                                      avx512_w co, int stream)
{
    __m512i a = avx512_channel(ae, ao, 0), b = avx512_channel(be, bo, 1), c = avx512_channel(ce, co, 2);
    for (int k = 0; k < 3; k++) {
        __m512i done = _mm512_mask_blend_epi8(pick64[(4 - k) % 3], a, b);
        done = _mm512_mask_blend_epi8(pick64[(5 - k) % 3], done, c);
        if (stream)
            _mm512_stream_si512((__m512i *)(void *)(out + 64 * k), done);
        else
            _mm512_storeu_si512(out + 64 * k, done);
    }
}

#define ISA(name) avx512_##name
#define NAME "avx512"
#define TARGET AVX512
#define BYTES 64
#define MULHRS avx512_mulhrs
#define STORE avx512_store
#define ANY_RATIO avx2_any_ratio
#include "set.h"
#endif /* HAVE_X86 */

/* ---- which set ------------------------------------------------------------------------------------------------- */

static const comux_set *sets[4];
static const char *names[5];
static int count, current;

static void add(const comux_set *set)
{
    names[count] = set->name;
    sets[count++] = set;
}

__attribute__((constructor)) static void find_sets(void)
{
#ifdef HAVE_X86
    make_tables();
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi"))
        add(&avx512_set);
    if (__builtin_cpu_supports("avx2"))
        add(&avx2_set);
    if (__builtin_cpu_supports("sse4.1"))
        add(&sse_set);
#endif
    add(&plain_set);
}

const char *const *comux_isa_available(void)
{
    return names;
}

const comux_set *comux_set_current(void)
{
    return sets[__atomic_load_n(&current, __ATOMIC_RELAXED)];
}

const char *comux_isa_current(void)
{
    return comux_set_current()->name;
}

int comux_isa_use(const char *name)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            __atomic_store_n(&current, i, __ATOMIC_RELAXED);
            return 0;
        }
    }
    return -1;
}

/* ---- pictures -------------------------------------------------------------------------------------------------- */

static int16_t fixed(double x, int bits)
{
    return (int16_t)lrint(ldexp(x, bits));
}

void comux_matrix_make(comux_matrix *m, double kr, double kb, int full_range)
{
    double kg = 1 - kr - kb;
    double luma = full_range ? 1 : 255.0 / 219, chroma = full_range ? 1 : 255.0 / 224;
    double black = full_range ? 0 : -16 * luma;
    m->y = fixed(luma, 13);
    m->bu = fixed(2 * (1 - kb) * chroma, 12);
    m->gu = fixed(-2 * kb * (1 - kb) / kg * chroma, 12);
    m->gv = fixed(-2 * kr * (1 - kr) / kg * chroma, 12);
    m->rv = fixed(2 * (1 - kr) * chroma, 12);
    m->b0 = m->g0 = m->r0 = (int16_t)(fixed(black, 5) + 16);
}

int comux_may_stream(const comux_picture *p)
{
    return ((uintptr_t)p->out | (uintptr_t)p->out_stride) % 64 == 0 &&
           p->out_stride * p->out_height >= STREAM_FROM_BYTES;
}

void comux_stream_end(int stream)
{
#ifdef HAVE_X86
    if (stream)
        _mm_sfence(); /* streaming stores are ordered by nothing else: the array is handed to other threads */
#else
    (void)stream;
#endif
}

void comux_convert(const comux_picture *p)
{
    const comux_set *set = comux_set_current();
    int stream = comux_may_stream(p);
    for (ptrdiff_t row = 0; row < p->height; row += p->chroma_rows) {
        ptrdiff_t chroma = row / p->chroma_rows;
        int two = p->chroma_rows == 2 && row + 1 < p->height;
        row_pair r = {
            .y0 = p->y + row * p->y_stride,
            .y1 = two ? p->y + (row + 1) * p->y_stride : NULL,
            .u = p->u + chroma * p->u_stride,
            .v = p->v == NULL ? NULL : p->v + chroma * p->v_stride,
            .out0 = p->out + row * p->out_stride,
            .out1 = two ? p->out + (row + 1) * p->out_stride : NULL,
        };
        set->rows(p, &r, stream);
    }
    comux_stream_end(stream);
}

/* (Y - 16) * 255 / 219 in unsigned 16-bit lanes, 6 bits of fraction: every one of the 220 values comes out rounded
 * right. Written for the compiler to turn into vectors of whatever set it is inlined for. */
static inline __attribute__((always_inline)) void gray_row(const uint8_t *restrict y, uint8_t *restrict out,
                                                           ptrdiff_t width)
{
    for (ptrdiff_t x = 0; x < width; x++) {
        uint8_t above = y[x] < 16 ? 16 : y[x] > 235 ? 235 : y[x];
        uint16_t scaled = (uint16_t)(((uint32_t)(uint16_t)((above - 16) << 8) * 19077u) >> 16);
        out[x] = (uint8_t)((uint16_t)(scaled + 32) >> 6);
    }
}

static void plain_gray(const uint8_t *y, uint8_t *out, ptrdiff_t width)
{
    gray_row(y, out, width);
}

#ifdef HAVE_X86
AVX2 static void avx2_gray(const uint8_t *y, uint8_t *out, ptrdiff_t width)
{
    gray_row(y, out, width);
}
#endif

void comux_gray(const comux_picture *p)
{
    void (*row_fn)(const uint8_t *, uint8_t *, ptrdiff_t) = plain_gray;
#ifdef HAVE_X86
    if (comux_isa_current()[0] == 'a')
        row_fn = avx2_gray; /* whatever has AVX-512 has AVX2 */
#endif
    for (ptrdiff_t row = 0; row < p->height; row++) {
        const uint8_t *y = p->y + row * p->y_stride;
        uint8_t *out = p->out + row * p->out_stride;
        if (p->full_range)
            memcpy(out, y, (size_t)p->width);
        else
            row_fn(y, out, p->width);
    }
}
