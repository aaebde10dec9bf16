/* Compacted layers: lists of the units that groups keep, and panels of a matrix gathered and scattered by them. */
#include "checks.h"
#include "pool.h"

#include <string.h>

enum { WORTH_A_THREAD = 1 << 15 };

void puredrop_list(const float *keep, int64_t groups, int64_t size, int32_t *index, int32_t *at, int32_t *counts)
{
    CHECK(fault_of_masks(keep, groups, size, index, at, counts));
    for (int64_t g = 0; g < groups; ++g, keep += size, index += size, at += size) {
        int32_t count = 0;
        for (int64_t j = 0; j < size; ++j) {
            const int kept = keep[j] != 0;
            index[count] = (int32_t)j; /* if unit j is dropped, the next kept unit overwrites this */
            at[j] = kept ? count : -1;
            count += kept;
        }
        counts[g] = count;
    }
}

/* Return the place of a dense row in a group's panel, or -1. */
static int64_t place_in(const struct puredrop_panels *call, int64_t group, int64_t row)
{
    if (call->row_at)
        return call->row_at[group * call->rows + row];
    const int64_t place = row - group * call->row_step;
    return place >= 0 && place < call->height ? place : -1;
}

static float *row_of(const struct puredrop_panels *call, int64_t group, int64_t place)
{
    return call->values + (group * call->height + place) * call->breadth * call->inner;
}

static void gather_row(const struct puredrop_panels *call, int64_t group, const float *restrict dense,
                       float *restrict to)
{
    const int64_t inner = call->inner, size = call->width / inner;
    const float scale = (float)call->scale;
    if (!call->column) {
        for (int64_t i = 0; i < call->width; ++i)
            to[i] = dense[i] * scale;
        return;
    }
    const int32_t *const column = call->column + group * size;
    const int64_t count = call->column_count[group];
    if (inner == 1)
        for (int64_t j = 0; j < count; ++j)
            to[j] = dense[column[j]] * scale;
    else
        for (int64_t j = 0; j < count; ++j)
            for (int64_t i = 0; i < inner; ++i)
                to[j * inner + i] = dense[column[j] * inner + i] * scale;
    memset(to + count * inner, 0, (size_t)((call->breadth - count) * inner) * sizeof *to);
}

/* Add to a row that was set before. */
static void scatter_row(const struct puredrop_panels *call, int64_t group, float *restrict dense,
                        const float *restrict from)
{
    const int64_t inner = call->inner, size = call->width / inner;
    const float scale = (float)call->scale;
    if (!call->column) {
        for (int64_t i = 0; i < call->width; ++i)
            dense[i] += from[i] * scale;
        return;
    }
    const int32_t *const column = call->column + group * size;
    const int64_t count = call->column_count[group];
    if (inner == 1)
        for (int64_t j = 0; j < count; ++j)
            dense[column[j]] += from[j] * scale;
    else
        for (int64_t j = 0; j < count; ++j)
            for (int64_t i = 0; i < inner; ++i)
                dense[column[j] * inner + i] += from[j * inner + i] * scale;
}

static void gather_rows(int64_t begin, int64_t end, void *context)
{
    const struct puredrop_panels *const call = context;
    for (int64_t row = begin; row < end; ++row)
        for (int64_t g = 0; g < call->groups; ++g) {
            const int64_t place = place_in(call, g, row);
            if (place >= 0)
                gather_row(call, g, call->dense + row * call->width, row_of(call, g, place));
        }
}

/* Each dense row is summed over its groups in cache and written to memory once. */
static void scatter_rows(int64_t begin, int64_t end, void *context)
{
    const struct puredrop_panels *const call = context;
    for (int64_t row = begin; row < end; ++row) {
        float *const dense = call->dense + row * call->width;
        memset(dense, 0, (size_t)call->width * sizeof *dense);
        for (int64_t g = 0; g < call->groups; ++g) {
            const int64_t place = place_in(call, g, row);
            if (place >= 0)
                scatter_row(call, g, dense, row_of(call, g, place));
        }
    }
}

int puredrop_panels(const struct puredrop_panels *call)
{
    CHECK(fault_of_panels(call));
    if (fault_of_lists(call))
        return PUREDROP_WRONG;
    const int64_t grain = call->width < WORTH_A_THREAD ? WORTH_A_THREAD / (call->width + 1) + 1 : 1;
    if (call->scatters)
        return over_pool(call->rows, grain, scatter_rows, (void *)call);
    if (call->row_at)
        for (int64_t g = 0; g < call->groups; ++g) { /* zero the padding rows */
            const int64_t count = call->row_count[g], rest = call->height - count;
            memset(row_of(call, g, count), 0, (size_t)(rest * call->breadth * call->inner) * sizeof(float));
        }
    return over_pool(call->rows, grain, gather_rows, (void *)call);
}
