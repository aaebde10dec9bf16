/* Walk by tiles where memory order differs from the logical order: draw along the logical order, apply along memory. */
#include "plan.h"

#include <string.h>

/* A tile has SIZE elements, as high as may be, for the longer a column in memory the better, but is no narrower than what
   a vector draws at once. */
enum { SIZE = 1 << 16, HEIGHT_MOST = 2048, BREADTH_LEAST = 256, BREADTH_MOST = 4096, SLACK = DRAW_OVERRUN + 8 };

/* Return the dimension along which the logical order runs if it is not the last one and tiles pay; else -1. */
static int64_t columns_of(const struct plan *plan)
{
    int64_t d = plan->is_side_by_side && plan->dim[plan->rank - 1].logical_stride > 1 ? plan->rank - 2 : -1;
    while (d >= 0 && !(plan->dim[d].logical_stride == 1 && !plan->dim[d].ids && plan->dim[d].size >= 16))
        --d;
    return d;
}

void plan_tiles(struct plan *plan)
{
    plan->columns = columns_of(plan);
    if (plan->columns < 0)
        return;
    plan->height = least(plan->dim[plan->rank - 1].size, HEIGHT_MOST);
    plan->breadth = least(SIZE / plan->height / 64 * 64, BREADTH_MOST);
    if (plan->breadth < BREADTH_LEAST)
        plan->breadth = BREADTH_LEAST;
}

/* Description of a tile's draw: row by row, each along the columns, where the logical order runs from j on. */
struct drawn {
    uint8_t bits[HEIGHT_MOST * (BREADTH_LEAST / 8 + 2) + SLACK];
    uint64_t j, pitch, stride; /* distance between rows: in bits, and in the logical order */
};

/* A thread's memory for one tile: its draw, and the decisions in memory order. */
struct tile {
    struct drawn drawn;
    uint64_t run[SIZE / 64 + 2], turned[64][HEIGHT_MOST / 64 + 1];
    uint64_t spread[256]; /* a byte's bits, `height` <= 8 bits apart */
};

static void draw(const struct plan *plan, struct drawn *drawn, int64_t height, int64_t breadth)
{
    const int64_t stride = plan->dim[plan->rank - 1].logical_stride;
    const int is_one = stride == breadth; /* if each row continues the last one, draw them together */
    drawn->pitch = (uint64_t)(is_one ? breadth : plan->breadth + 16);
    drawn->stride = is_one ? 0 : (uint64_t)stride;
    for (int64_t r = 0; r < (is_one ? 1 : height); ++r) {
        const uint64_t first = drawn->j + (uint64_t)r * drawn->stride;
        const int64_t blocks = (int64_t)(((first & 15) + (uint64_t)(is_one ? height * breadth : breadth) + 15) / 16);
        for (int64_t b = 0; b < blocks; b += DRAW_MOST)
            plan->isa->draw(&plan->rule, (first >> 4) + (uint64_t)b, (size_t)least(blocks - b, DRAW_MOST),
                            drawn->bits + r * (int64_t)drawn->pitch / 8 + 2 * b);
    }
}

/* Read 64 columns from `left` on of `count` rows from `top` on, one word for each row. */
static void words(const struct drawn *drawn, int64_t left, int64_t top, int64_t count, uint64_t *word)
{
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t r = (uint64_t)(top + i), bit = r * drawn->pitch + ((drawn->j + r * drawn->stride) & 15) + (uint64_t)left;
        const uint8_t *const from = drawn->bits + bit / 8;
        memcpy(&word[i], from, sizeof word[i]);
        word[i] = word[i] >> (bit & 7) | (uint64_t)from[8] << 1 << (63 - (bit & 7));
    }
}

/* Within every `size` columns of `size` words: bit c of word r becomes bit r of word c. Perfect shuffles (after Warren:
   Hacker's Delight, 7-3). */
static void transpose(uint64_t word[64], int size)
{
    uint64_t other[64], *from = word, *to = other;
    for (int j = size / 2; j; j /= 2) {
        const uint64_t mask = UINT64_MAX / (((uint64_t)1 << j) + 1); /* j bits set, j not, ... */
        for (int k = 0; k < size / 2; ++k) {
            to[2 * k] = (from[k] & mask) | (from[k + size / 2] & mask) << j;
            to[2 * k + 1] = (from[k] >> j & mask) | (from[k + size / 2] & ~mask);
        }
        uint64_t *const swap = from;
        from = to, to = swap;
    }
    if (from != word)
        memcpy(word, from, (size_t)size * sizeof word[0]);
}

/* Write 64 columns of `height` <= 8 words as bits, column after column. */
static void weave(const uint64_t spread[256], const uint64_t word[8], int64_t height, uint64_t *run)
{
    uint64_t eight[8] = {0};
    for (int64_t r = 0; r < height; ++r)
        for (int c = 0; c < 8; ++c)
            eight[c] |= spread[word[r] >> 8 * c & 0xFF] << r;
    for (int c = 0; c < 8; ++c) /* each store overwrites the surplus bits of the one before */
        memcpy((char *)run + c * height, &eight[c], sizeof eight[c]);
}

/* Do the same for heights up to 64. */
static void line_up(uint64_t word[64], int64_t height, uint64_t *run)
{
    int64_t fill = 0;
    uint64_t held = 0;
    int size = 16;
    while (size < height)
        size *= 2;
    memset(word + height, 0, (size_t)(size - height) * sizeof word[0]);
    transpose(word, size);
    for (int left = 0; left < 64; left += size)
        for (int c = 0; c < size; ++c) {
            const uint64_t column = word[c] >> left & UINT64_MAX >> (64 - size);
            held |= column << fill;
            fill += height;
            if (fill >= 64) {
                *run++ = held;
                fill -= 64;
                held = column >> 1 >> (height - fill - 1);
            }
        }
    *run = held;
}

/* Apply a tile whose columns follow each other in memory, as one run. */
static void apply_run(const struct plan *plan, struct tile *tile, char *operand[OPERANDS], int64_t height,
                      int64_t breadth)
{
    uint64_t word[64];
    for (int64_t left = 0; left < breadth; left += 64) {
        words(&tile->drawn, left, 0, height, word);
        (height <= 8 ? weave(tile->spread, word, height, tile->run + left * height / 64)
                     : line_up(word, height, tile->run + left * height / 64));
    }
    plan->apply(operand, (size_t)(height * breadth), (uint8_t *)tile->run, 0, plan->rule.scale);
}

/* Apply a tile column by column, each as a run. */
static void apply_columns(const struct plan *plan, struct tile *tile, char *operand[OPERANDS], int64_t height,
                          int64_t breadth)
{
    uint64_t word[64] = {0};
    char *at[OPERANDS];
    for (int64_t c = 0; c < breadth; ++c) {
        for (int64_t top = 0; c % 64 == 0 && top < height; top += 64) {
            words(&tile->drawn, c, top, least(height - top, 64), word);
            transpose(word, 64);
            for (int i = 0; i < 64; ++i)
                tile->turned[i][top / 64] = word[i];
        }
        move(at, operand, plan->dim[plan->columns].stride, c);
        plan->apply(at, (size_t)height, (uint8_t *)tile->turned[c % 64], 0, plan->rule.scale);
    }
}

/* Return the thread's own tile, which is 97 KiB, more than the whole stack of some threads. A call finds it once. */
static __attribute__((noinline)) struct tile *own_tile(void)
{
    static _Thread_local struct tile tile __attribute__((aligned(64)));
    return &tile;
}

void tiles(int64_t begin, int64_t end, void *context)
{
    struct tile *const tile = own_tile();
    const struct plan *plan = context;
    const struct puredrop_dim *row = &plan->dim[plan->rank - 1], *column = &plan->dim[plan->columns];
    const int64_t down = (row->size + plan->height - 1) / plan->height;
    const int64_t across = (column->size + plan->breadth - 1) / plan->breadth;
    struct place place;
    for (int byte = 1; byte < 256 && plan->height <= 8; ++byte)
        tile->spread[byte] = tile->spread[byte & (byte - 1)] | (uint64_t)1 << __builtin_ctz((unsigned)byte) * plan->height;
    seek(plan, begin / down / across, &place);
    for (int64_t at = begin; at < end; ++at) {
        const int64_t top = at % down * plan->height, left = at / down % across * plan->breadth;
        const int64_t height = least(row->size - top, plan->height), breadth = least(column->size - left, plan->breadth);
        char *operand[OPERANDS];
        tile->drawn.j = place.j + logical(row, top) + logical(column, left);
        move(operand, place.operand, row->stride, top);
        move(operand, operand, column->stride, left);
        int is_run = height <= 64;
        for (int o = 0; o < OPERANDS; ++o)
            is_run &= !operand[o] || column->stride[o] == height * plan->width;
        draw(plan, &tile->drawn, height, breadth);
        (is_run ? apply_run : apply_columns)(plan, tile, operand, height, breadth);
        if ((at + 1) % (down * across) == 0)
            advance(plan, &place);
    }
}
