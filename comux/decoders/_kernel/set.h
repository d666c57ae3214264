/* All that is compiled once for each instruction set. A template: pixels.c includes it with
 *
 *   ISA(name)      the name with the set's suffix
 *   NAME           what it is called
 *   TARGET         function attribute that allows the set
 *   BYTES          vector size in bytes, which is also the number of pixels done at once
 *   MULHRS(a, b)   (a * b + 2^14) >> 15 in 16-bit lanes, all of it or nothing rounded differently
 *   STORE(...)     interleaves three channels of even and odd pixels and stores 3 * BYTES bytes
 *   ANY_RATIO(...) a line by comux_across's tables
 */
#include "rows.h"

#include "lines.h"

static const comux_set ISA(set) = {
    NAME, ISA(rows), ISA(down), ISA(blend), ISA(apart), ISA(across), ISA(line_pixels),
};

#undef W
#undef UW
#undef ISA
#undef NAME
#undef TARGET
#undef BYTES
#undef MULHRS
#undef STORE
#undef ANY_RATIO
