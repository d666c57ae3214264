/* What the parts of the kernel agree on: pixels.c has the instruction sets, resize.c knows sizes and weights, and the
 * templates (set.h: rows.h, lines.h) do the work.
 *
 * A sample in a line is a word in units of 2^-7: 0 to 255 are 0 to 32640. */
#ifndef COMUX_KERNEL_H
#define COMUX_KERNEL_H

#include "pixels.h"

/* Rows of planes that share their chroma, and the rows of the array. */
typedef struct {
    const uint8_t *y0, *y1, *u, *v; /* y1 is NULL where there is one row only */
    uint8_t *out0, *out1;
} row_pair;

/* What lines have behind their end, in words: loops over vectors, whole periods and tap pairs may touch it. */
#define LINE_PADDING 128

/* Of a line that is summed up in 32 bits, how many columns at a time: half of the nearest cache at most. */
#define COLUMNS 1024

/* Samples to pixels for which there is a loop of its own: 2_1 is two samples a pixel. */
typedef enum { ACROSS_ANY, ACROSS_1_1, ACROSS_1_2, ACROSS_2_1, ACROSS_3_1, ACROSS_3_2, ACROSS_3_4 } comux_shortcut;

/* How a line of n pixels comes out of a line of samples. The tables are for ACROSS_ANY: pixels in fours, taps in pairs,
 * so that one pixel's pair is one 32-bit lane. weights[(four * pairs + pair) * 8 + 2 * (pixel % 4) + tap % 2], in units
 * of 2^-14; those of one pixel add up to 2^14. */
typedef struct {
    comux_shortcut shortcut;
    ptrdiff_t n, pairs;
    int near;             /* eight samples from the first on hold any pair of a four: order may be used */
    const int32_t *first; /* of each pixel's samples */
    const int16_t *weights;
    const uint8_t *order; /* which of those eight's 16 bytes make the pairs, 16 for each four */
} comux_across;

/* Three lines of one row of pixels, even ones first, odd ones from half on; u and v are NULL for gray. */
typedef struct {
    const uint16_t *y, *u, *v;
    ptrdiff_t half;
} comux_lines;

/* One instruction set. */
typedef struct {
    const char *name;
    /* A row of the array, or two, out of the planes as they are. */
    void (*rows)(const comux_picture *p, const row_pair *r, int stream);
    /* n rows of a plane, weighted in units of 2^-15, become one line. */
    void (*down)(const uint8_t *first, ptrdiff_t stride, const uint16_t *weights, ptrdiff_t n, uint16_t *line,
                 ptrdiff_t width);
    /* Two lines become one, the same weights. */
    void (*blend)(const uint16_t *a, const uint16_t *b, const uint16_t *weights, uint16_t *line, ptrdiff_t n);
    /* U and V of NV12 apart; n of each. */
    void (*apart)(const uint16_t *both, uint16_t *u, uint16_t *v, ptrdiff_t n);
    /* between: a line for what stands between two steps. */
    void (*across)(const comux_across *a, const uint16_t *in, uint16_t *even, uint16_t *odd, uint16_t *between);
    /* A row of the array out of lines. */
    void (*pixels)(const comux_picture *p, const comux_lines *lines, uint8_t *out, int stream);
} comux_set;

/* The chosen one. */
const comux_set *comux_set_current(void);

/* Whether stores of this picture's array may go past the caches. */
int comux_may_stream(const comux_picture *p);
/* What orders such stores before whatever comes next. */
void comux_stream_end(int stream);

#endif
