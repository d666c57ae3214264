/* Lines of samples on their way to another size, with one instruction set: kernel.h says what they are, this is written
 * for the compiler to turn into vectors of the set. A template, as rows.h is; set.h includes it. Loops may go on past a
 * line's end into its padding.
 */

#define LINE TARGET static inline __attribute__((always_inline))

/* sample * weight, both unsigned, the upper word of the product: what every vector unit has one instruction for. */
LINE uint16_t ISA(part)(uint16_t sample, uint16_t weight)
{
    return (uint16_t)(((uint32_t)sample * weight) >> 16);
}

/* ---- down: rows of a plane become one line, weights in units of 2^-15 ------------------------------------------- */

/* Up to four rows, in words all along. Each product loses half a unit on average. */
LINE void ISA(few_down)(const uint8_t *first, ptrdiff_t stride, const uint16_t *weights, int n, uint16_t *restrict line,
                        ptrdiff_t width)
{
    const uint8_t *rows[4];
    uint16_t w[4];
    for (int k = 0; k < 4; k++) {
        rows[k] = first + (k < n ? k : 0) * stride;
        w[k] = k < n ? weights[k] : 0;
    }
    for (ptrdiff_t x = 0; x < width; x++) {
        uint16_t sum = (uint16_t)(n / 2) + ISA(part)((uint16_t)(rows[0][x] << 8), w[0]);
        if (n > 1)
            sum += ISA(part)((uint16_t)(rows[1][x] << 8), w[1]);
        if (n > 2)
            sum += ISA(part)((uint16_t)(rows[2][x] << 8), w[2]);
        if (n > 3)
            sum += ISA(part)((uint16_t)(rows[3][x] << 8), w[3]);
        line[x] = sum;
    }
}

/* Any number of rows, where such losses would add up: exact sums, for some columns at a time. */
LINE void ISA(many_down)(const uint8_t *first, ptrdiff_t stride, const uint16_t *weights, ptrdiff_t n,
                         uint16_t *restrict line, ptrdiff_t width)
{
    uint32_t sums[COLUMNS];
    for (ptrdiff_t x = 0; x < width; x += COLUMNS, first += COLUMNS, line += COLUMNS) {
        ptrdiff_t columns = width - x < COLUMNS ? width - x : COLUMNS;
        for (ptrdiff_t i = 0; i < columns; i++)
            sums[i] = 128;
        for (ptrdiff_t k = 0; k < n; k++)
            for (ptrdiff_t i = 0; i < columns; i++)
                sums[i] += (uint32_t)first[k * stride + i] * weights[k];
        for (ptrdiff_t i = 0; i < columns; i++)
            line[i] = (uint16_t)(sums[i] >> 8);
    }
}

TARGET static void ISA(down)(const uint8_t *first, ptrdiff_t stride, const uint16_t *weights, ptrdiff_t n,
                             uint16_t *line, ptrdiff_t width)
{
    if (n == 1)
        ISA(few_down)(first, stride, weights, 1, line, width);
    else if (n == 2)
        ISA(few_down)(first, stride, weights, 2, line, width);
    else if (n == 3)
        ISA(few_down)(first, stride, weights, 3, line, width);
    else if (n == 4)
        ISA(few_down)(first, stride, weights, 4, line, width);
    else
        ISA(many_down)(first, stride, weights, n, line, width);
}

/* Two lines become one, weights in units of 2^-15. */
TARGET static void ISA(blend)(const uint16_t *restrict a, const uint16_t *restrict b, const uint16_t *weights,
                              uint16_t *restrict line, ptrdiff_t n)
{
    uint16_t wa = weights[0], wb = weights[1];
    for (ptrdiff_t x = 0; x < n; x++)
        line[x] = ISA(part)((uint16_t)(a[x] << 1), wa) + ISA(part)((uint16_t)(b[x] << 1), wb) + 1;
}

/* U and V of NV12 apart; n of each. */
TARGET static void ISA(apart)(const uint16_t *restrict both, uint16_t *restrict u, uint16_t *restrict v, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        u[i] = both[2 * i];
        v[i] = both[2 * i + 1];
    }
}

/* ---- across: a line of n pixels out of a line of samples -------------------------------------------------------- */

/* The upper word of sum * 2^16 / 3 and the like: what is lost is half a unit on average for each product. */
LINE uint16_t ISA(third)(uint16_t sample)
{
    return ISA(part)(sample, 21845);
}

LINE uint16_t ISA(thirds)(uint16_t sample)
{
    return ISA(part)(sample, 43691);
}

/* As many pixels as samples: only the order changes. */
TARGET static void ISA(split)(const uint16_t *restrict in, uint16_t *restrict even, uint16_t *restrict odd, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < (n + 1) / 2; i++) {
        even[i] = in[2 * i];
        odd[i] = in[2 * i + 1];
    }
}

TARGET static void ISA(across_1_2)(const uint16_t *restrict in, uint16_t *restrict even, uint16_t *restrict odd,
                                   ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < (n + 1) / 2; i++)
        even[i] = odd[i] = in[i];
}

TARGET static void ISA(across_2_1)(const uint16_t *restrict in, uint16_t *restrict even, uint16_t *restrict odd,
                                   ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < (n + 1) / 2; i++) {
        even[i] = (uint16_t)((uint16_t)(in[4 * i] + in[4 * i + 1] + 1) >> 1);
        odd[i] = (uint16_t)((uint16_t)(in[4 * i + 2] + in[4 * i + 3] + 1) >> 1);
    }
}

/* Three samples a pixel. Two steps: compilers take samples apart by threes, not by sixes. */
TARGET static void ISA(across_3_1)(const uint16_t *restrict in, uint16_t *restrict even, uint16_t *restrict odd,
                                   uint16_t *restrict between, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        between[i] = ISA(third)(in[3 * i]) + ISA(third)(in[3 * i + 1]) + ISA(third)(in[3 * i + 2]) + 1;
    ISA(split)(between, even, odd, n);
}

TARGET static void ISA(across_3_2)(const uint16_t *restrict in, uint16_t *restrict even, uint16_t *restrict odd,
                                   ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < (n + 1) / 2; i++) {
        uint16_t middle = ISA(third)(in[3 * i + 1]) + 1;
        even[i] = ISA(thirds)(in[3 * i]) + middle;
        odd[i] = ISA(thirds)(in[3 * i + 2]) + middle;
    }
}

TARGET static void ISA(across_3_4)(const uint16_t *restrict in, uint16_t *restrict even, uint16_t *restrict odd,
                                   ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < (n + 3) / 4; i++) {
        even[2 * i] = in[3 * i];
        odd[2 * i] = ISA(third)(in[3 * i]) + ISA(thirds)(in[3 * i + 1]) + 1;
        even[2 * i + 1] = ISA(thirds)(in[3 * i + 1]) + ISA(third)(in[3 * i + 2]) + 1;
        odd[2 * i + 1] = in[3 * i + 2];
    }
}

TARGET static void ISA(across)(const comux_across *a, const uint16_t *in, uint16_t *even, uint16_t *odd,
                               uint16_t *between)
{
    switch (a->shortcut) {
    case ACROSS_1_1:
        ISA(split)(in, even, odd, a->n);
        break;
    case ACROSS_1_2:
        ISA(across_1_2)(in, even, odd, a->n);
        break;
    case ACROSS_2_1:
        ISA(across_2_1)(in, even, odd, a->n);
        break;
    case ACROSS_3_1:
        ISA(across_3_1)(in, even, odd, between, a->n);
        break;
    case ACROSS_3_2:
        ISA(across_3_2)(in, even, odd, a->n);
        break;
    case ACROSS_3_4:
        ISA(across_3_4)(in, even, odd, a->n);
        break;
    default:
        ANY_RATIO(a, in, between);
        ISA(split)(between, even, odd, a->n);
    }
}

#undef LINE
