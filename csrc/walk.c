/* From strides and a place in the logical tensor to runs of elements, in memory order, on torch's pool. */
#define _DEFAULT_SOURCE /* madvise */
#include "isa.h"

#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#endif

enum {
    GRAIN = 1 << 15,         /* elements that make another thread worth waking, as in torch */
    FRESH = 32 << 20,        /* bytes from which an output is memory that no one has touched (glibc maps it anew) */
    AT_ONCE = 1 << 18,       /* bytes of it that are asked for at once, before they are written */
    ROWS = 256, COLS = 256,  /* of a tile: where memory order is not logical order */
    SLACK = DRAW_OVERRUN + 8, /* room behind decisions for what draws and applies beyond them */
    PITCH = COLS / 8 + 2 + SLACK
};

struct plan {
    const struct isa *isa;
    apply_fn *apply;
    stream_fn *stream;
    struct rule rule;
    int64_t op, width, rank, columns; /* width of an element in bytes; columns: see columns_of */
    char *const *operand;
    uint64_t start;
    struct puredrop_dim dim[MAX_RANK]; /* outermost in memory first; strides in bytes */
};

/* Decisions last drawn: of elements 16 * block on. */
struct drawn {
    uint64_t block;
    size_t blocks;
    uint8_t bits[CHUNK / 8 + SLACK];
};

static puredrop_parallel_for *torch_pool;

void puredrop_use_pool(puredrop_parallel_for *pool) { torch_pool = pool; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Whether dimension a, just outside b, continues it in every operand and in the logical order. */
static int continues(const struct puredrop_dim *a, const struct puredrop_dim *b)
{
    int same = !a->ids && !b->ids && a->logical_stride == b->logical_stride * b->size;
    for (int o = 0; o < OPERANDS; ++o)
        same &= a->stride[o] == b->stride[o] * b->size;
    return same;
}

/* Dimensions in the output's memory order, those that continue each other merged; at least one. */
static void plan_dims(struct plan *plan, const struct puredrop_dim *dim, int64_t rank)
{
    int64_t count = 0;
    for (int64_t d = 0; d < rank; ++d) {
        if (dim[d].size == 1 && !dim[d].ids)
            continue;
        int64_t to = count++;
        for (; to && plan->dim[to - 1].stride[0] < dim[d].stride[0] * plan->width; --to)
            plan->dim[to] = plan->dim[to - 1];
        plan->dim[to] = dim[d];
        if (plan->op == RELU_BACKWARD) /* reads the forward's decisions off its output */
            plan->dim[to].logical_stride = 0, plan->dim[to].ids = NULL;
        for (int o = 0; o < OPERANDS; ++o)
            plan->dim[to].stride[o] *= plan->width;
    }
    for (int64_t d = count - 1; d > 0; --d)
        if (continues(&plan->dim[d - 1], &plan->dim[d])) {
            plan->dim[d].size *= plan->dim[d - 1].size;
            memmove(&plan->dim[d - 1], &plan->dim[d], (size_t)(count-- - d) * sizeof plan->dim[0]);
        }
    if (count == 0) /* only sizes of 1 */
        plan->dim[count++] = (struct puredrop_dim){.size = 1, .logical_stride = 1};
    plan->rank = count;
}

/* Whether the elements of the last dimension lie side by side in every operand. */
static int is_side_by_side(const struct plan *plan)
{
    const struct puredrop_dim *last = &plan->dim[plan->rank - 1];
    int is = !last->ids;
    for (int o = 0; o < OPERANDS; ++o)
        is &= !plan->operand[o] || last->stride[o] == plan->width || last->size == 1;
    return is;
}

/* How many elements lie between the output's first and last, both included: all of them if there are no gaps. */
static int64_t reach_of(const struct plan *plan)
{
    int64_t reach = 1;
    for (int64_t d = 0; d < plan->rank; ++d)
        reach += (plan->dim[d].size - 1) * plan->dim[d].stride[0] / plan->width;
    return reach;
}

/* The dimension along which the logical order runs, where it is not the last one and tiles pay; else -1. */
static int64_t columns_of(const struct plan *plan)
{
    int64_t d = is_side_by_side(plan) && plan->dim[plan->rank - 1].logical_stride > 1 ? plan->rank - 2 : -1;
    while (d >= 0 && !(plan->dim[d].logical_stride == 1 && !plan->dim[d].ids && plan->dim[d].size >= 16))
        --d;
    return d;
}

/* `to` is `from`, so many strides on; operands that are not there stay away. */
static void move(char *to[OPERANDS], char *const from[OPERANDS], const int64_t stride[OPERANDS], int64_t by)
{
    for (int o = 0; o < OPERANDS; ++o)
        to[o] = from[o] ? from[o] + by * stride[o] : NULL;
}

static uint64_t logical(const struct puredrop_dim *dim, int64_t i)
{
    return (uint64_t)(dim->ids ? dim->ids[i] : i) * (uint64_t)dim->logical_stride;
}

/* Goes to the `index`-th combination of the outer dimensions: all but the last and, for tiles, but the columns.
   Returns its logical index. */
static uint64_t seek(const struct plan *plan, int64_t index, char *operand[OPERANDS])
{
    uint64_t j = plan->start;
    memcpy(operand, plan->operand, OPERANDS * sizeof operand[0]);
    for (int64_t d = plan->rank - 2; d >= 0; --d)
        if (d != plan->columns) {
            const struct puredrop_dim *dim = &plan->dim[d];
            const int64_t rest = d ? index / dim->size : 0, i = index - rest * dim->size;
            move(operand, operand, dim->stride, i);
            j += logical(dim, i);
            index = rest;
        }
    return j;
}

/* Decisions of n <= CHUNK - 15 elements from j on: the byte of the first one, whose bit is j mod 8. */
static const uint8_t *decide(const struct plan *plan, struct drawn *drawn, uint64_t j, int64_t n)
{
    const uint64_t block = j >> 4;
    const size_t lanes = plan->isa->lanes, blocks = ((j & 15) + (uint64_t)n + 15) / 16;
    if (block < drawn->block || block + blocks > drawn->block + drawn->blocks) {
        drawn->block = block;
        drawn->blocks = (blocks + lanes - 1) / lanes * lanes;
        plan->isa->draw(&plan->rule, block, drawn->blocks, drawn->bits);
    }
    return drawn->bits + 2 * (block - drawn->block) + (j & 15) / 8;
}

/* n elements side by side: each with its own decision, or all with one. */
static void run(const struct plan *plan, struct drawn *drawn, char *operand[OPERANDS], uint64_t j, int64_t n)
{
    const struct puredrop_dim *dim = &plan->dim[plan->rank - 1];
    const int shares = dim->logical_stride == 0, keeps = shares && *decide(plan, drawn, j, 1) >> (j & 7) & 1;
    uint8_t one[CHUNK / 8 + APPLY_OVERRUN];
    if (shares && !keeps && plan->op == DROPOUT) {
        const int64_t size = n * plan->width; /* in parts: for long ones C libraries take an instruction */
        for (int64_t at = 0; at < size; at += 512) /* that page faults of fresh memory slow down (6 % on 32 MB) */
            memset(operand[0] + at, 0, (size_t)least(size - at, 512));
        return;
    }
    if (shares)
        memset(one, keeps ? 0xFF : 0, (size_t)least(n, CHUNK) / 8 + APPLY_OVERRUN);
    for (int64_t length; n; n -= length) {
        const int streams = plan->stream && n >= 2 * CHUNK && !shares && !plan->rule.all;
        if (streams && (j & 15) == 0) {
            length = n - n % CHUNK;
            plan->stream(operand, (size_t)length / CHUNK, &plan->rule, j >> 4);
        } else {
            length = least(n, (streams ? 16 : CHUNK) - (int64_t)(j & 15));
            plan->apply(operand, (size_t)length, shares ? one : decide(plan, drawn, j, length), shares ? 0 : j & 7,
                        plan->rule.scale);
        }
        move(operand, operand, dim->stride, length);
        j += shares ? 0 : (uint64_t)length;
    }
}

/* n elements anywhere along the last dimension, from its index i on: gathered, treated and scattered, 16 at a time. */
static void scattered(const struct plan *plan, struct drawn *drawn, char *operand[OPERANDS], uint64_t j, int64_t i,
                      int64_t n)
{
    const struct puredrop_dim *dim = &plan->dim[plan->rank - 1];
    const size_t width = (size_t)plan->width;
    for (const int64_t end = i + n; i < end; i += 16) {
        char buffer[OPERANDS][16 * sizeof(double)], *packed[OPERANDS], *at[OPERANDS];
        uint8_t bits[2 + APPLY_OVERRUN] = {0};
        const int64_t length = least(end - i, 16);
        for (int64_t k = 0; k < length; ++k) {
            const uint64_t element = j + logical(dim, i + k);
            bits[k / 8] |= (uint8_t)((*decide(plan, drawn, element, 1) >> (element & 7) & 1) << (k & 7));
            move(at, operand, dim->stride, i + k);
            for (int o = 1; o < OPERANDS; ++o)
                if (at[o])
                    memcpy(buffer[o] + (size_t)k * width, at[o], width);
        }
        for (int o = 0; o < OPERANDS; ++o)
            packed[o] = operand[o] ? buffer[o] : NULL;
        plan->apply(packed, (size_t)length, bits, 0, plan->rule.scale);
        for (int64_t k = 0; k < length; ++k)
            memcpy(operand[0] + (i + k) * dim->stride[0], buffer[0] + (size_t)k * width, width);
    }
}

/* The pool's share of the elements, counted in memory order. */
static void rows(int64_t begin, int64_t end, void *context)
{
    const struct plan *plan = context;
    const struct puredrop_dim *last = &plan->dim[plan->rank - 1];
    const int is_scattered = !is_side_by_side(plan) || last->logical_stride > 1;
    struct drawn drawn = {.blocks = 0};
    for (int64_t length; begin < end; begin += length) {
        const int64_t row = plan->rank > 1 ? begin / last->size : 0, i = begin - row * last->size;
        char *operand[OPERANDS];
        const uint64_t j = seek(plan, row, operand);
        length = least(last->size - i, end - begin);
        if (is_scattered) {
            scattered(plan, &drawn, operand, j, i, length);
            continue;
        }
        move(operand, operand, last->stride, i);
        run(plan, &drawn, operand, j + logical(last, i), length);
    }
}

/* The same into fresh memory, whose page faults cost more than all else: ask for many pages at once. */
static void fresh_rows(int64_t begin, int64_t end, void *context)
{
    const struct plan *plan = context;
    const int64_t step = AT_ONCE / plan->width;
    for (int64_t at = begin; at < end; at += step) {
        const int64_t to = least(at + step, end);
#if defined(__linux__)
        char *const first = plan->operand[0] + at * plan->width, *const page = first - ((uintptr_t)first & 4095);
        madvise(page, (size_t)(first - page + (to - at) * plan->width), MADV_POPULATE_WRITE);
#endif
        rows(at, to, context);
    }
}

/* Bit c of word r becomes bit r of word c: six perfect shuffles (after Warren: Hacker's Delight, 7-3). */
static void transpose(uint64_t word[64])
{
    uint64_t other[64], *from = word, *to = other, mask = 0x00000000FFFFFFFF;
    for (int j = 32; j; j >>= 1, mask ^= mask << j) {
        for (int k = 0; k < 32; ++k) {
            to[2 * k] = (from[k] & mask) | (from[k + 32] & mask) << j;
            to[2 * k + 1] = (from[k] >> j & mask) | (from[k + 32] & ~mask);
        }
        uint64_t *const swap = from;
        from = to, to = swap;
    }
}

/* 64 decisions from a bit on. */
static uint64_t word_at(const uint8_t *bits, uint64_t bit)
{
    uint64_t word;
    memcpy(&word, bits + bit / 8, sizeof word);
    return word >> (bit & 7) | (uint64_t)bits[bit / 8 + 8] << 1 << (63 - (bit & 7));
}

/* One tile: decisions are drawn row by row along the columns, where the logical order runs, and applied column by
   column, whose `height` elements lie side by side in memory. */
static void tile(const struct plan *plan, char *operand[OPERANDS], uint64_t j, int64_t height, int64_t breadth)
{
    const struct puredrop_dim *row = &plan->dim[plan->rank - 1], *column = &plan->dim[plan->columns];
    const int follow = row->logical_stride == breadth; /* the rows, in the logical order: all drawn as one */
    int is_run = height <= 64;                         /* the columns, in memory: all applied as one */
    uint8_t bits[ROWS * PITCH + SLACK];
    for (int o = 0; o < OPERANDS; ++o)
        is_run &= !operand[o] || column->stride[o] == height * plan->width;
    for (int64_t r = 0; r < (follow ? 1 : height); ++r) {
        const uint64_t first = j + logical(row, r), n = (uint64_t)(follow ? height * breadth : breadth);
        const int64_t blocks = (int64_t)(((first & 15) + n + 15) / 16);
        for (int64_t b = 0; b < blocks; b += DRAW_MOST)
            plan->isa->draw(&plan->rule, (first >> 4) + (uint64_t)b, (size_t)least(blocks - b, DRAW_MOST),
                            bits + r * PITCH + 2 * b);
    }
    for (int64_t left = 0; left < breadth; left += 64) {
        uint64_t turned[64][ROWS / 64 + 1], run[64 + 2] = {0};
        const int64_t wide = least(breadth - left, 64);
        for (int64_t top = 0; top < height; top += 64) {
            uint64_t word[64] = {0};
            for (int64_t r = top; r < least(height, top + 64); ++r)
                word[r - top] = word_at(bits, (uint64_t)(left + r * (follow ? breadth : PITCH * 8)) +
                                                  ((j + (follow ? 0 : logical(row, r))) & 15));
            transpose(word);
            for (int c = 0; c < 64; ++c)
                turned[c][top / 64] = word[c];
        }
        for (int64_t c = 0, bit = 0; is_run && c < wide; ++c, bit += height) {
            run[bit / 64] |= turned[c][0] << (bit & 63);
            run[bit / 64 + 1] |= turned[c][0] >> 1 >> (63 - (bit & 63));
        }
        for (int64_t c = 0; c < wide; c += is_run ? wide : 1) {
            char *at[OPERANDS];
            move(at, operand, column->stride, left + c);
            plan->apply(at, (size_t)(is_run ? height * wide : height), (uint8_t *)(is_run ? run : turned[c]), 0,
                        plan->rule.scale);
        }
    }
}

/* The pool's share of the tiles. */
static void tiles(int64_t begin, int64_t end, void *context)
{
    const struct plan *plan = context;
    const struct puredrop_dim *row = &plan->dim[plan->rank - 1], *column = &plan->dim[plan->columns];
    const int64_t down = (row->size + ROWS - 1) / ROWS, across = (column->size + COLS - 1) / COLS;
    for (int64_t at = begin; at < end; ++at) {
        const int64_t top = at % down * ROWS, left = at / down % across * COLS;
        char *operand[OPERANDS];
        const uint64_t j = seek(plan, at / down / across, operand) + logical(row, top) + logical(column, left);
        move(operand, operand, row->stride, top);
        move(operand, operand, column->stride, left);
        tile(plan, operand, j, least(row->size - top, ROWS), least(column->size - left, COLS));
    }
}

int puredrop_run(const struct puredrop_call *call)
{
    static const int64_t widths[DTYPES] = {4, 8, 2, 2};
    struct plan plan;
    int64_t count = 1, unit = 1;

    plan.isa = isa_in_use();
    plan.apply = plan.isa->apply[call->op][call->dtype];
    plan.stream = plan.isa->stream[call->op][call->dtype];
    plan.rule = rule_of(call->key, call->p);
    plan.op = call->op;
    plan.width = widths[call->dtype];
    plan.operand = call->operand;
    plan.start = call->start;
    plan_dims(&plan, call->dim, call->rank);
    plan.columns = columns_of(&plan);

    for (int64_t d = 0; d < plan.rank; ++d) { /* count: elements, or tiles of `unit` elements */
        const int64_t size = plan.dim[d].size, side = d == plan.columns ? COLS : d == plan.rank - 1 ? ROWS : 1;
        count *= plan.columns < 0 ? size : (size + side - 1) / side;
        unit *= plan.columns < 0 ? 1 : least(size, side);
    }
    const int64_t grain = GRAIN > unit ? GRAIN / unit : 1;
    const int is_fresh = plan.operand[0] != plan.operand[1] && reach_of(&plan) == count && count * plan.width >= FRESH;
    void (*const body)(int64_t, int64_t, void *) = plan.columns >= 0 ? tiles : is_fresh ? fresh_rows : rows;
    if (torch_pool && count > grain)
        return torch_pool(0, count, grain, body, &plan);
    body(0, count, &plan);
    return 0;
}
