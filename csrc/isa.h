/* The drop rule, and what an instruction set provides: decisions as bits, and the loops that apply them. */
#ifndef PUREDROP_ISA_H
#define PUREDROP_ISA_H

#include "puredrop.h"

/* A key and a drop probability as the contract reads it, eight base-256 digits. */
struct rule {
    uint64_t key;
    uint8_t digit[8];
    int planes; /* digits up to the last nonzero one; a draw that ties in all of them is not below the threshold */
    int all;    /* p = 1: 2^64 has no eight digits */
    double scale;
};
struct rule rule_of(uint64_t key, double p);

/* Return whether element j, whose first digit equals the threshold's, is kept. */
int rule_keeps_tied(const struct rule *rule, uint64_t j);

/* One bit per element, 1 = keep, for `blocks` (at most DRAW_MOST) times 16 elements from element 16 * block on. Writes
   whole vectors: up to DRAW_OVERRUN bytes beyond. */
enum { CHUNK = 2048, DRAW_MOST = CHUNK / 16 + 8, DRAW_OVERRUN = 14 };
typedef void draw_fn(const struct rule *rule, uint64_t block, size_t blocks, uint8_t *bits);

/* n elements that lie side by side in every operand; element i's bit is bit shift + i, shift < 8. Reads up to
   APPLY_OVERRUN bytes beyond the last bit. */
enum { APPLY_OVERRUN = 4 };
typedef void apply_fn(char *const *operand, size_t n, const uint8_t *bits, unsigned shift, double scale);

/* `chunks` times CHUNK elements that lie side by side in every operand, from element 16 * block on: drawn and treated.
   The first chunk is already drawn; so no draw is on the stack while a stream is. NULL for ops whose arithmetic is the
   cost, which gain nothing by it. */
typedef void stream_fn(char *const *operand, size_t chunks, const struct rule *rule, uint64_t block,
                       const uint8_t first[CHUNK / 8]);

struct isa {
    const char *name;
    size_t lanes; /* blocks that one vector draws */
    draw_fn *draw;
    apply_fn *apply[OPS][DTYPES];
    stream_fn *stream[OPS][DTYPES];
};
extern const struct isa isa_scalar, isa_avx2, isa_avx512, isa_neon;

/* Return the variant in use. */
const struct isa *isa_in_use(void);

#endif
