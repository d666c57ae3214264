/* Pixels: 8-bit YUV with half-width chroma to packed BGR or RGB. What binding.c and pixels.c agree on. */
#ifndef COMUX_PIXELS_H
#define COMUX_PIXELS_H

#include <stddef.h>
#include <stdint.h>

/* Coefficients of one colour matrix and range, in the fixed point that pixels.c explains. */
typedef struct {
    int16_t y;              /* luma, 2^13 */
    int16_t bu, gu, gv, rv; /* chroma, 2^12 */
    int16_t b0, g0, r0;     /* offsets, 2^5, half a unit for rounding included */
} comux_matrix;

/* One picture to convert. Strides in bytes, not negative. */
typedef struct {
    const uint8_t *y, *u, *v; /* v is NULL where u holds U and V interleaved (NV12) */
    ptrdiff_t y_stride, u_stride, v_stride;
    uint8_t *out; /* 3 bytes a pixel; 1 in comux_resize where u is NULL: gray */
    ptrdiff_t out_stride;
    ptrdiff_t width, height;         /* of the planes */
    ptrdiff_t out_width, out_height; /* of the array; comux_convert takes the planes' for it */
    int chroma_rows; /* luma rows per chroma row: 2 (4:2:0) or 1 (4:2:2) */
    int full_range;  /* of the planes; for gray, m says it otherwise */
    int rgb;         /* 0: B, G, R in memory; 1: R, G, B */
    comux_matrix m;
} comux_picture;

/* Fills m for luma weights kr and kb (kg is the rest), limited or full range. */
void comux_matrix_make(comux_matrix *m, double kr, double kb, int full_range);

/* Converts with the chosen instruction set. Reads no byte outside the planes' visible pixels, writes none outside
 * the output's. No locks, no allocation, any thread. */
void comux_convert(const comux_picture *p);

/* The same into an array of another size; resize.c says how. Allocates what it works in and frees it.
 * Returns -1 where there is no memory, else 0. No locks, any thread. */
int comux_resize(const comux_picture *p);

/* Luma alone, stretched to full range where it is limited. */
void comux_gray(const comux_picture *p);

/* Instruction sets that this build has and this machine can run, best first; NULL ends the list. */
const char *const *comux_isa_available(void);
const char *comux_isa_current(void);
/* Returns -1 where name is not available. Takes effect for later conversions. */
int comux_isa_use(const char *name);

#endif
