/* Plan of a call: its dimensions in memory order, the addresses of its elements and the rule that drops them. */
#ifndef PUREDROP_PLAN_H
#define PUREDROP_PLAN_H

#include "isa.h"

struct plan {
    const struct isa *isa;
    apply_fn *apply;
    stream_fn *stream;
    struct rule rule;
    int64_t op, width, rank; /* width of an element in bytes */
    char *const *operand;
    uint64_t start;
    struct puredrop_dim dim[MAX_RANK]; /* outermost in memory first; strides in bytes */
    int is_side_by_side;               /* the last dimension is contiguous in every operand */
    int64_t columns, height, breadth;  /* the dimension along which tiles run, or -1; the size of a tile */
};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Set `to` to `from` moved by a number of strides; missing operands stay NULL. */
static inline void move(char *to[OPERANDS], char *const from[OPERANDS], const int64_t stride[OPERANDS], int64_t by)
{
    for (int o = 0; o < OPERANDS; ++o)
        to[o] = from[o] ? from[o] + by * stride[o] : NULL;
}

static inline uint64_t logical(const struct puredrop_dim *dim, int64_t i)
{
    return (uint64_t)(dim->ids ? dim->ids[i] : i) * (uint64_t)dim->logical_stride;
}

/* One combination of indices of the outer dimensions: all but the last and, for tiles, the columns. */
struct place {
    char *operand[OPERANDS];
    uint64_t j; /* its logical index */
    int64_t index[MAX_RANK];
};
void seek(const struct plan *plan, int64_t number, struct place *place);
void advance(const struct plan *plan, struct place *place);

/* Execute a thread's share of a plan: elements in memory order, with outputs in use or fresh, or tiles. */
void rows(int64_t begin, int64_t end, void *plan);
void fresh_rows(int64_t begin, int64_t end, void *plan);
void tiles(int64_t begin, int64_t end, void *plan);

/* Choose the columns and the size of the tiles, if tiles pay. */
void plan_tiles(struct plan *plan);

#endif
