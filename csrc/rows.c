/* Walk in memory order: contiguous runs, and single elements with any stride. */
#define _DEFAULT_SOURCE /* madvise */
#include "plan.h"

#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#endif

/* Decisions drawn before, in spans, each in the slot that its number hashes to: memory order comes back to where it was
   in the logical order, as with the heads of attention, which take turns. */
enum { SPAN = 512, SLOTS = 128 };
struct drawn {
    uint64_t tag[SLOTS]; /* the span's number plus 1, or 0 for an empty slot */
    uint8_t bits[SLOTS][SPAN / 8], slack[DRAW_OVERRUN];
};

/* Return the decisions of the span that holds element j. */
static const uint8_t *decided(const struct plan *plan, struct drawn *drawn, uint64_t j)
{
    const uint64_t span = j / SPAN, slot = span * 0x9E3779B97F4A7C15u >> 57; /* Fibonacci hashing, of 7 bits */
    _Static_assert(SLOTS == 1 << 7, "as many as the hash has values");
    if (drawn->tag[slot] != span + 1) {
        drawn->tag[slot] = span + 1;
        plan->isa->draw(&plan->rule, span * (SPAN / 16), SPAN / 16, drawn->bits[slot]);
    }
    return drawn->bits[slot];
}

/* Return whether element j is kept. */
static int kept(const struct plan *plan, struct drawn *drawn, uint64_t j)
{
    return decided(plan, drawn, j)[j % SPAN / 8] >> (j & 7) & 1;
}

/* Treat n contiguous elements, each with its own decision or all with one. */
static void run(const struct plan *plan, struct drawn *drawn, char *operand[OPERANDS], uint64_t j, int64_t n)
{
    const struct puredrop_dim *dim = &plan->dim[plan->rank - 1];
    const int shares = dim->logical_stride == 0, keeps = shares && kept(plan, drawn, j);
    uint8_t one[CHUNK / 8 + APPLY_OVERRUN], first[CHUNK / 8 + DRAW_OVERRUN];
    if (shares && !keeps && plan->op == DROPOUT) {
        const int64_t size = n * plan->width; /* in parts: for long ones C libraries take an instruction */
        for (int64_t at = 0; at < size; at += 512) /* that page faults of fresh memory slow down (6 % on 32 MB) */
            memset(operand[0] + at, 0, (size_t)least(size - at, 512));
        return;
    }
    if (shares)
        memset(one, keeps ? 0xFF : 0, (size_t)least(n, CHUNK) / 8 + APPLY_OVERRUN);
    for (int64_t length; n; n -= length) {
        const int streams = plan->stream && n >= CHUNK && !shares && !plan->rule.all;
        if (streams && (j & 15) == 0) {
            length = n - n % CHUNK;
            plan->isa->draw(&plan->rule, j >> 4, CHUNK / 16, first);
            plan->stream(operand, (size_t)length / CHUNK, &plan->rule, j >> 4, first);
        } else {
            length = least(n, shares ? CHUNK : streams ? 16 - (int64_t)(j & 15) : SPAN - (int64_t)(j % SPAN));
            plan->apply(operand, (size_t)length, shares ? one : decided(plan, drawn, j) + j % SPAN / 8, shares ? 0 : j & 7,
                        plan->rule.scale);
        }
        move(operand, operand, dim->stride, length);
        j += shares ? 0 : (uint64_t)length;
    }
}

/* Treat n strided elements along the last dimension from index i on: gather 16 at a time, treat them, scatter them. */
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
            bits[k / 8] |= (uint8_t)(kept(plan, drawn, j + logical(dim, i + k)) << (k & 7));
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

/* Return the thread's own memory of draws: 9 KiB, much for a small stack. A call finds it once. */
static __attribute__((noinline)) struct drawn *own_draws(void)
{
    static _Thread_local struct drawn drawn __attribute__((aligned(64)));
    return &drawn;
}

/* Treat one thread's share of the elements, counted in memory order. */
void rows(int64_t begin, int64_t end, void *context)
{
    const struct plan *plan = context;
    const struct puredrop_dim *last = &plan->dim[plan->rank - 1];
    const int is_scattered = !plan->is_side_by_side || last->logical_stride > 1;
    struct drawn *const drawn = own_draws();
    struct place row;
    memset(drawn->tag, 0, sizeof drawn->tag);
    seek(plan, begin / last->size, &row);
    for (int64_t i = begin % last->size, length; begin < end; begin += length, i = 0) {
        char *operand[OPERANDS];
        length = least(last->size - i, end - begin);
        move(operand, row.operand, last->stride, is_scattered ? 0 : i);
        if (is_scattered)
            scattered(plan, drawn, operand, row.j, i, length);
        else
            run(plan, drawn, operand, row.j + logical(last, i), length);
        advance(plan, &row);
    }
}

/* Do the same into fresh memory, where page faults cost more than the work: ask the system for many pages at once. */
void fresh_rows(int64_t begin, int64_t end, void *context)
{
    const struct plan *plan = context;
    const int64_t step = (1 << 18) / plan->width;
    for (int64_t at = begin; at < end; at += step) {
        const int64_t to = least(at + step, end);
#if defined(__linux__)
        char *const first = plan->operand[0] + at * plan->width, *const page = first - ((uintptr_t)first & 4095);
        madvise(page, (size_t)(first - page + (to - at) * plan->width), MADV_POPULATE_WRITE);
#endif
        rows(at, to, context);
    }
}
