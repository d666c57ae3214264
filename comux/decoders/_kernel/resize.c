/* YUV to BGR of another size in one pass over the picture.
 *
 * What comes out. Each axis for itself. Along one that becomes smaller, or stays, a pixel is the average of the area it
 * covers in the picture as it was, parts of pixels counted as parts; along one that grows, it is interpolated between
 * the two nearest samples, centres aligned (OpenCV's INTER_AREA and INTER_LINEAR). A chroma sample lies in the middle
 * of the pixels it belongs to, which is libswscale's default too and agrees with comux_convert, and every pixel of the
 * array gets chroma of its own: where both axes shrink, the array is the area average of what comux_convert's equations
 * give for the whole picture, but for clipping.
 *
 * How. A row of the array at a time. "Down" makes one line of the plane's rows that the row covers, "across" one pixel
 * of the line's samples that it covers, then colours. Down comes first because there rows become fewer and vectors have
 * nothing to rearrange; where rows become more, each row of the plane goes across once and two of them are blended.
 * Lines stay in the nearest cache. "Across" has loops of its own for ratios that cameras have (2:1, 3:1, 3:2 and what
 * these are for chroma), tables for all others.
 *
 * Arithmetic. Samples are words in units of 2^-7 from the first step to the last, so that nothing is rounded to 8 bits
 * in between. Weights add up to one exactly. Words lose at most four units on the way, the mean of which is put back;
 * more than four samples are summed up in 32 bits. The array sees less than 0.15 of it, rounded once at the end. All of
 * it is whole numbers, and which loop is taken depends on sizes only: instruction sets are equal bit for bit.
 */
#include "kernel.h"

#include <stdlib.h>

/* One plane along one axis: `samples` of them, each `share` of the picture's `pixels` wide, become `n`. */
typedef struct {
    int64_t samples, share, pixels, n;
} axis;

static axis make_axis(ptrdiff_t pixels, int share, ptrdiff_t n)
{
    return (axis){.samples = (pixels + share - 1) / share, .share = share, .pixels = pixels, .n = n};
}

static int grows(const axis *a)
{
    return a->n > a->pixels;
}

/* The most samples that a pixel takes. */
static ptrdiff_t most_taps(const axis *a)
{
    int64_t unit = a->n * a->share;
    if (grows(a))
        return a->samples > 1 ? 2 : 1;
    return (ptrdiff_t)((a->pixels + unit - 1) / unit + (a->pixels % unit == 0 ? 0 : 1));
}

/* Lengths are in n-ths of a picture's pixel here, so that all of them are whole: pixel i covers `pixels` of them. */
static ptrdiff_t area_taps(const axis *a, ptrdiff_t i, int one, ptrdiff_t *first, uint16_t *weights)
{
    int64_t unit = a->n * a->share, begin = i * a->pixels, end = begin + a->pixels;
    double scale = (double)one / (double)a->pixels;
    ptrdiff_t n = 0;
    int before = 0;
    *first = (ptrdiff_t)(begin / unit);
    for (int64_t edge = *first * unit; edge < end; n++) {
        edge += unit;
        int until = (int)((double)((edge < end ? edge : end) - begin) * scale + 0.5);
        weights[n] = (uint16_t)(until - before);
        before = until;
    }
    return n;
}

/* The middle of pixel i lies ((2i + 1) * pixels / (n * share) - 1) / 2 samples behind the middle of the first one. */
static ptrdiff_t linear_taps(const axis *a, ptrdiff_t i, int one, ptrdiff_t *first, uint16_t *weights)
{
    int64_t unit = 2 * a->n * a->share, place = (2 * i + 1) * a->pixels - a->n * a->share;
    int64_t left = place < 0 ? 0 : place / unit;
    if (place < 0 || left >= a->samples - 1) {
        *first = (ptrdiff_t)(left < a->samples ? left : a->samples - 1);
        weights[0] = (uint16_t)one;
        return 1;
    }
    *first = (ptrdiff_t)left;
    weights[1] = (uint16_t)((double)(place - left * unit) / (double)unit * one + 0.5);
    weights[0] = (uint16_t)(one - weights[1]);
    return 2;
}

/* Which samples make pixel i, and how much of each: adds up to one. Returns how many. */
static ptrdiff_t taps(const axis *a, ptrdiff_t i, int one, ptrdiff_t *first, uint16_t *weights)
{
    return grows(a) ? linear_taps(a, i, one, first, weights) : area_taps(a, i, one, first, weights);
}

/* ---- across ------------------------------------------------------------------------------------------------------ */

static comux_shortcut find_shortcut(const axis *a)
{
    static const struct {
        int samples, pixels;
        comux_shortcut shortcut;
    } known[] = {
        {1, 1, ACROSS_1_1}, {1, 2, ACROSS_1_2}, {2, 1, ACROSS_2_1},
        {3, 1, ACROSS_3_1}, {3, 2, ACROSS_3_2}, {3, 4, ACROSS_3_4},
    };
    for (size_t k = 0; !grows(a) && k < sizeof known / sizeof *known; k++)
        if (a->pixels * known[k].pixels == a->n * a->share * known[k].samples)
            return known[k].shortcut;
    return ACROSS_ANY;
}

/* The tables of a line of n pixels, which have room for whole pairs of fours and hold zeros. */
static void fill_tables(const axis *a, ptrdiff_t pairs, uint16_t *scratch, int32_t *first, int16_t *weights,
                        uint8_t *order)
{
    for (ptrdiff_t i = 0; i < (a->n + 7) / 8 * 8; i++) {
        ptrdiff_t from, n = taps(a, i < a->n ? i : a->n - 1, 1 << 14, &from, scratch), four = i / 4;
        first[i] = (int32_t)from;
        for (ptrdiff_t k = 0; k < n; k++)
            weights[(four * pairs + k / 2) * 8 + i % 4 * 2 + k % 2] = (int16_t)scratch[k];
        for (int byte = 0; byte < 4; byte++)
            order[4 * i + byte] = (uint8_t)(2 * (from - first[4 * four]) + byte);
    }
}

/* ---- memory: one piece for all of it, zeroed --------------------------------------------------------------------- */

typedef struct {
    char *memory; /* NULL while it is measured */
    size_t used;
} arena;

static void *take(arena *m, size_t bytes)
{
    char *piece = m->memory == NULL ? NULL : m->memory + m->used;
    m->used += (bytes + 63) & ~(size_t)63;
    return piece;
}

static uint16_t *take_words(arena *m, int64_t n)
{
    return take(m, ((size_t)n + LINE_PADDING) * sizeof(uint16_t));
}

/* One plane and the lines that come of it, or the two planes of chroma, which go together. */
typedef struct {
    int channels;             /* 1: luma; 2: chroma */
    const uint8_t *source[2]; /* the second is NULL where the first holds both (NV12) */
    ptrdiff_t stride[2];
    axis down, along;
    comux_across across;
    ptrdiff_t held[2];     /* which rows of the plane lines[0] and lines[1] are, alone; -1: none */
    uint16_t *lines[3][2]; /* done ones, for each channel; [1] and [2] only where rows become more */
    uint16_t *apart[2];    /* of NV12: not across yet */
} plan;

typedef struct {
    plan luma, chroma;
    uint16_t *weights, *line, *between;
    ptrdiff_t half;
} work;

static void make_plan(plan *l, const comux_picture *p, int share_along, int share_down)
{
    l->along = make_axis(p->width, share_along, p->out_width);
    l->down = make_axis(p->height, share_down, p->out_height);
    l->across.n = p->out_width;
    l->across.shortcut = find_shortcut(&l->along);
    l->across.pairs = (most_taps(&l->along) + 1) / 2;
    l->across.near = l->along.pixels <= 2 * l->along.n * l->along.share;
    l->held[0] = l->held[1] = -1;
}

static void make_plans(work *w, const comux_picture *p)
{
    w->half = (p->out_width / 2 + LINE_PADDING) & ~(ptrdiff_t)31;
    w->luma = (plan){.channels = 1, .source = {p->y}, .stride = {p->y_stride}};
    make_plan(&w->luma, p, 1, 1);
    w->chroma = (plan){.source = {p->u, p->v}, .stride = {p->u_stride, p->v_stride}};
    if (p->u == NULL)
        return;
    w->chroma.channels = 2;
    make_plan(&w->chroma, p, 2, p->chroma_rows);
}

static void take_tables(plan *l, arena *m, uint16_t *scratch)
{
    size_t fours = ((size_t)l->along.n + 7) / 8 * 2;
    int32_t *first = take(m, fours * 4 * sizeof *first);
    int16_t *weights = take(m, fours * (size_t)l->across.pairs * 8 * sizeof *weights);
    uint8_t *order = take(m, fours * 16);
    if (m->memory != NULL)
        fill_tables(&l->along, l->across.pairs, scratch, first, weights, order);
    l->across.first = first;
    l->across.weights = weights;
    l->across.order = order;
}

static void take_plan(plan *l, arena *m, const work *w)
{
    for (int k = 0; k < (grows(&l->down) ? 3 : 1); k++)
        for (int c = 0; c < l->channels; c++)
            l->lines[k][c] = take_words(m, 2 * w->half);
    if (l->channels == 2 && l->source[1] == NULL)
        for (int c = 0; c < 2; c++)
            l->apart[c] = take_words(m, l->along.samples);
    if (l->channels != 0 && l->across.shortcut == ACROSS_ANY)
        take_tables(l, m, w->weights);
}

static void take_all(work *w, arena *m, const comux_picture *p)
{
    ptrdiff_t down = most_taps(&w->luma.down), along = most_taps(&w->luma.along);
    w->weights = take_words(m, down > along ? down : along);
    w->line = take_words(m, p->width + 1);
    w->between = take_words(m, p->out_width);
    take_plan(&w->luma, m, w);
    take_plan(&w->chroma, m, w);
}

/* ---- rows of the array ------------------------------------------------------------------------------------------- */

/* Lines of n rows of the plane together, from `first` on. */
static void make_lines(const comux_set *set, const work *w, const plan *l, ptrdiff_t first, ptrdiff_t n,
                       const uint16_t *weights, uint16_t *const *lines)
{
    int both = l->channels == 2 && l->source[1] == NULL;
    for (int c = 0; c < l->channels; c++) {
        const uint16_t *line = both ? l->apart[c] : w->line;
        if (c == 0 || !both)
            set->down(l->source[c] + first * l->stride[c], l->stride[c], weights, n, w->line,
                      (ptrdiff_t)l->along.samples * (1 + both));
        if (c == 0 && both)
            set->apart(w->line, l->apart[0], l->apart[1], (ptrdiff_t)l->along.samples);
        set->across(&l->across, line, lines[c], lines[c] + w->half, w->between);
    }
}

/* Where there are fewer rows: down first. A row that stands alone, twice over, is done once. */
static uint16_t *const *lines_of_fewer(const comux_set *set, const work *w, plan *l, ptrdiff_t row)
{
    ptrdiff_t first, n = taps(&l->down, row, 1 << 15, &first, w->weights);
    if (n > 1 || first != l->held[0])
        make_lines(set, w, l, first, n, w->weights, l->lines[0]);
    l->held[0] = n == 1 ? first : -1;
    return l->lines[0];
}

/* Where there are more: each row of the plane goes across once and is held until the next but one. */
static uint16_t *const *lines_of_more(const comux_set *set, const work *w, plan *l, ptrdiff_t row)
{
    static const uint16_t whole = 1 << 15;
    ptrdiff_t first, n = taps(&l->down, row, 1 << 15, &first, w->weights);
    for (ptrdiff_t k = first; k < first + n; k++) {
        if (l->held[k % 2] != k)
            make_lines(set, w, l, k, 1, &whole, l->lines[k % 2]);
        l->held[k % 2] = k;
    }
    if (n == 1)
        return l->lines[first % 2];
    for (int c = 0; c < l->channels; c++)
        set->blend(l->lines[first % 2][c], l->lines[(first + 1) % 2][c], w->weights, l->lines[2][c], 2 * w->half);
    return l->lines[2];
}

static uint16_t *const *lines_of(const comux_set *set, const work *w, plan *l, ptrdiff_t row)
{
    return grows(&l->down) ? lines_of_more(set, w, l, row) : lines_of_fewer(set, w, l, row);
}

int comux_resize(const comux_picture *p)
{
    const comux_set *set = comux_set_current();
    int stream = p->u != NULL && comux_may_stream(p);
    work w;
    arena m = {0};
    make_plans(&w, p);
    take_all(&w, &m, p);
    m = (arena){.memory = calloc(1, m.used)};
    if (m.memory == NULL)
        return -1;
    take_all(&w, &m, p);
    for (ptrdiff_t row = 0; row < p->out_height; row++) {
        uint16_t *const *luma = lines_of(set, &w, &w.luma, row);
        comux_lines lines = {.y = luma[0], .half = w.half};
        if (p->u != NULL) {
            uint16_t *const *chroma = lines_of(set, &w, &w.chroma, row);
            lines.u = chroma[0], lines.v = chroma[1];
        }
        set->pixels(p, &lines, p->out + row * p->out_stride, stream);
    }
    comux_stream_end(stream);
    free(m.memory);
    return 0;
}
