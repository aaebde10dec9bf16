#include "checks.h"

/* What a tensor can span in bytes, so that no address overflows. */
static const int64_t most = INT64_MAX / 8;

/* Return whether the product of two sizes is no larger than a tensor's. */
static int fit(int64_t a, int64_t b)
{
    int64_t product;
    return !__builtin_mul_overflow(a, b, &product) && product <= most;
}

const char *fault_of_operands(const struct puredrop_call *call)
{
    if (call->op < 0 || call->op >= OPS)
        return "op is none of enum puredrop_op";
    if (call->dtype < 0 || call->dtype >= DTYPES)
        return "dtype is none of enum puredrop_dtype";
    if (!(call->p >= 0 && call->p <= 1))
        return "p is not within 0 and 1";
    const int has_second = call->op != DROPOUT && call->op != RELU && call->op != GELU, has_third = call->op == BIAS_ADD;
    if (!call->operand[0] || !call->operand[1])
        return "operand: out or x is NULL";
    if ((call->operand[2] != NULL) != has_second)
        return has_second ? "operand: second is NULL; the op reads it" : "operand: second is given; the op reads none";
    if ((call->operand[3] != NULL) != has_third)
        return has_third ? "operand: third is NULL; the op reads it" : "operand: third is given; the op reads none";
    return NULL;
}

static const char *fault_of_dims(const struct puredrop_call *call)
{
    int64_t count = 1, reach[OPERANDS] = {0};
    for (int64_t d = 0; d < call->rank; ++d) {
        const struct puredrop_dim *dim = &call->dim[d];
        if (dim->size < 1)
            return "dim: a size is below 1";
        if (!fit(count, dim->size))
            return "dim: the sizes' product overflows";
        count *= dim->size;
        if (dim->size > 1 && dim->stride[0] == 0)
            return "dim: out has a stride of 0, so that elements overwrite each other";
        for (int o = 0; o < OPERANDS; ++o) {
            const int64_t own = dim->stride[o], stride = own < -most ? INT64_MAX : own < 0 ? -own : own;
            if (!fit(dim->size - 1, stride) || reach[o] > most - (dim->size - 1) * stride)
                return "dim: a stride reaches beyond the address space";
            reach[o] += (dim->size - 1) * stride;
        }
        if ((uintptr_t)dim->ids % sizeof *dim->ids)
            return "dim: ids are not aligned";
    }
    return NULL;
}

const char *fault_of_call(const struct puredrop_call *call)
{
    const char *fault;
    if (!call)
        return "call is NULL";
    fault = fault_of_operands(call);
    if (fault)
        return fault;
    if (call->rank < 0 || call->rank > MAX_RANK)
        return "rank is not within 0 and MAX_RANK";
    return fault_of_dims(call);
}

static const char *fault_of_sizes(const struct puredrop_panels *call)
{
    if (call->rows < 0 || call->width < 0 || call->groups < 0 || call->height < 0 || call->breadth < 0)
        return "rows, width, groups, height or breadth is negative";
    if (call->inner < 1 || call->width % call->inner)
        return "inner does not divide width";
    if (!fit(call->rows, call->width) || !fit(call->groups, call->rows) || !fit(call->groups, call->width))
        return "rows, groups or width is too large";
    if (!fit(call->groups, call->height) || !fit(call->breadth, call->inner) ||
        !fit(call->groups * call->height, call->breadth * call->inner))
        return "groups, height, breadth or inner is too large";
    if (!call->column && call->breadth != call->width / call->inner)
        return "breadth is not the number of columns; there are no lists of columns";
    return NULL;
}

const char *fault_of_panels(const struct puredrop_panels *call)
{
    const char *fault;
    if (!call)
        return "call is NULL";
    if (call->scatters != 0 && call->scatters != 1)
        return "scatters is neither 0 nor 1";
    if (!call->row_at != !call->row_count || !call->column != !call->column_count)
        return "row_count or column_count: lists and counts come together";
    fault = fault_of_sizes(call);
    if (fault)
        return fault;
    if ((!call->dense && call->rows && call->width) || (!call->values && call->groups && call->height && call->breadth))
        return "dense or values is NULL";
    if (!call->row_at && call->groups &&
        (call->row_step < 0 || !fit(call->groups, call->row_step) ||
         call->row_step * (call->groups - 1) > call->rows - call->height))
        return "row_step: a group's rows lie beyond the matrix";
    return fault_of_lists(call);
}

/* Return whether values lie from `low` on and below `end`. */
static int within(const int32_t *value, int64_t count, int32_t low, int64_t end)
{
    const int32_t last = end > INT32_MAX ? INT32_MAX : (int32_t)(end - 1);
    int32_t outside = 0;
    for (int64_t i = 0; i < count; ++i)
        outside |= (value[i] < low) | (value[i] > last);
    return !outside;
}

const char *fault_of_lists(const struct puredrop_panels *call)
{
    const int64_t size = call->width / call->inner, most_columns = call->breadth < size ? call->breadth : size;
    if (call->row_at && !within(call->row_count, call->groups, 0, call->height + 1))
        return "row_count is not within 0 and height";
    if (call->row_at && !within(call->row_at, call->groups * call->rows, -1, call->height))
        return "row_at is not within -1 and height - 1";
    if (call->column && !within(call->column_count, call->groups, 0, most_columns + 1))
        return "column_count is not within 0 and breadth, or exceeds the number of columns";
    for (int64_t g = 0; call->column && g < call->groups; ++g)
        if (!within(call->column + g * size, call->column_count[g], 0, size))
            return "column is not below the number of columns";
    return NULL;
}

const char *fault_of_masks(const float *keep, int64_t groups, int64_t size, const int32_t *index, const int32_t *at,
                           const int32_t *counts)
{
    if (groups < 0 || size < 0 || size > INT32_MAX || !fit(groups, size))
        return "groups or size is negative or too large";
    if (groups && size && (!keep || !index || !at))
        return "keep, index or at is NULL";
    return groups && !counts ? "counts is NULL" : NULL;
}
