/* From a call's strides to a plan, and the plan's execution on torch's thread pool. */
#include "checks.h"
#include "plan.h"
#include "pool.h"

#include <string.h>

enum {
    GRAIN = 1 << 15, /* elements for which waking another thread pays, as in torch */
    FRESH = 32 << 20 /* outputs of at least so many bytes are fresh memory, because glibc maps it anew */
};

/* Return whether dimension a, just outside b, continues b in every operand and in the logical order. */
static int continues(const struct puredrop_dim *a, const struct puredrop_dim *b)
{
    int same = !a->ids && !b->ids && a->logical_stride == b->logical_stride * b->size;
    for (int o = 0; o < OPERANDS; ++o)
        same &= a->stride[o] == b->stride[o] * b->size;
    return same;
}

/* Sort the dimensions by the output's memory order and merge those that continue each other; at least one remains. */
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
        if (plan->op == RELU_BACKWARD) /* the forward's output holds its decisions */
            plan->dim[to].logical_stride = 0, plan->dim[to].ids = NULL;
        for (int o = 0; o < OPERANDS; ++o)
            plan->dim[to].stride[o] *= plan->width;
    }
    for (int64_t d = count - 1; d > 0; --d)
        if (continues(&plan->dim[d - 1], &plan->dim[d])) {
            plan->dim[d].size *= plan->dim[d - 1].size;
            memmove(&plan->dim[d - 1], &plan->dim[d], (size_t)(count-- - d) * sizeof plan->dim[0]);
        }
    if (count == 0) /* all sizes were 1 */
        plan->dim[count++] = (struct puredrop_dim){.size = 1, .logical_stride = 1};
    plan->rank = count;
}

/* Return whether the last dimension is contiguous in every operand. */
static int is_side_by_side(const struct plan *plan)
{
    const struct puredrop_dim *last = &plan->dim[plan->rank - 1];
    int is = !last->ids;
    for (int o = 0; o < OPERANDS; ++o)
        is &= !plan->operand[o] || last->stride[o] == plan->width || last->size == 1;
    return is;
}

/* Return the number of elements from the output's first to its last in memory; equal to its size if there are no gaps. */
static int64_t reach_of(const struct plan *plan)
{
    int64_t reach = 1;
    for (int64_t d = 0; d < plan->rank; ++d)
        reach += (plan->dim[d].size - 1) * plan->dim[d].stride[0] / plan->width;
    return reach;
}

/* Move along one dimension from one index to another. */
static void turn(struct place *place, const struct puredrop_dim *dim, int64_t from, int64_t to)
{
    move(place->operand, place->operand, dim->stride, to - from);
    place->j += logical(dim, to) - logical(dim, from);
}

void seek(const struct plan *plan, int64_t number, struct place *place)
{
    memcpy(place->operand, plan->operand, sizeof place->operand);
    place->j = plan->start;
    for (int64_t d = plan->rank - 2; d >= 0; --d)
        if (d != plan->columns) {
            const struct puredrop_dim *dim = &plan->dim[d];
            const int64_t rest = d ? number / dim->size : 0;
            place->index[d] = number - rest * dim->size;
            place->j += logical(dim, 0);
            turn(place, dim, 0, place->index[d]);
            number = rest;
        }
}

void advance(const struct plan *plan, struct place *place)
{
    for (int64_t d = plan->rank - 2; d >= 0; --d)
        if (d != plan->columns) {
            const int64_t from = place->index[d], to = from + 1 < plan->dim[d].size ? from + 1 : 0;
            turn(place, &plan->dim[d], from, place->index[d] = to);
            if (to)
                return;
        }
}

int puredrop_run(const struct puredrop_call *call)
{
    static const int64_t widths[DTYPES] = {4, 8, 2, 2};
    struct plan plan;
    int64_t count = 1, unit = 1;

    CHECK(fault_of_call(call));
    if (fault_of_operands(call))
        return PUREDROP_WRONG;
    plan.isa = isa_in_use();
    plan.apply = plan.isa->apply[call->op][call->dtype];
    plan.stream = plan.isa->stream[call->op][call->dtype];
    plan.rule = rule_of(call->key, call->p);
    plan.op = call->op;
    plan.width = widths[call->dtype];
    plan.operand = call->operand;
    plan.start = call->start;
    plan_dims(&plan, call->dim, call->rank);
    plan.is_side_by_side = is_side_by_side(&plan);
    plan_tiles(&plan);

    for (int64_t d = 0; d < plan.rank; ++d) { /* count: elements, or tiles of `unit` elements */
        const int64_t size = plan.dim[d].size, side = d == plan.columns ? plan.breadth : d == plan.rank - 1 ? plan.height : 1;
        count *= plan.columns < 0 ? size : (size + side - 1) / side;
        unit *= plan.columns < 0 ? 1 : least(size, side);
    }
    const int64_t grain = GRAIN > unit ? GRAIN / unit : 1;
    const int is_fresh = plan.operand[0] != plan.operand[1] && reach_of(&plan) == count && count * plan.width >= FRESH;
    void (*const body)(int64_t, int64_t, void *) = plan.columns >= 0 ? tiles : is_fresh ? fresh_rows : rows;
    return over_pool(count, grain, body, &plan);
}
