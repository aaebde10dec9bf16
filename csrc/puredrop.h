/* C interface of the compiled library; it is called from Python and knows nothing of torch. */
#ifndef PUREDROP_H
#define PUREDROP_H

#include <stddef.h>
#include <stdint.h>

#define PUREDROP_EXPORT __attribute__((visibility("default")))

enum puredrop_dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, DTYPES };

/* Operations, with d(x) for dropout; each rounds to the tensor's dtype after every named step. */
enum puredrop_op {
    DROPOUT,            /* d(x) */
    RELU,               /* d(relu(x)) */
    RELU_BACKWARD,      /* gradient x, second = the forward's output */
    GELU,               /* d(gelu(x)) */
    GELU_BACKWARD,      /* gradient x, second = the forward's input */
    ADD,                /* d(x) + second */
    BIAS_ADD,           /* d(x + third) + second */
    OPS
};

enum { MAX_RANK = 64, OPERANDS = 4 /* out, x, second, third */ };

/* A call, laid out as Python's struct module packs it: all fields are 8 bytes wide. */
struct puredrop_dim {
    int64_t size, logical_stride, stride[OPERANDS]; /* in elements */
    const int64_t *ids;                             /* sample ids that replace the index in the logical index, or NULL */
};
struct puredrop_call {
    int64_t op, dtype;
    uint64_t key;
    double p;
    char *operand[OPERANDS]; /* out may be x; unused ones are NULL */
    uint64_t start;          /* logical index of the first element */
    int64_t rank;
    struct puredrop_dim dim[MAX_RANK]; /* the first `rank` are read; sizes are not 0 */
};

/* Runs on torch's pool from `grain` elements up: torch_parallel_for of libtorch_cpu, or NULL to stay serial. */
typedef int32_t puredrop_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                      void (*body)(int64_t begin, int64_t end, void *context), void *context);

/* Return 0, or the status of torch_parallel_for; the output is undefined then. Or PUREDROP_WRONG, before anything is
 * written, if op, dtype or p is out of range, or an operand that the op reads is NULL, or one that it does not is given. */
enum { PUREDROP_WRONG = -1 };
PUREDROP_EXPORT int puredrop_run(const struct puredrop_call *call);
PUREDROP_EXPORT void puredrop_use_pool(puredrop_parallel_for *pool);

/* A dense matrix and its panels, which hold the rows and columns that each group keeps, padded with zeros. */
struct puredrop_panels {
    int64_t scatters; /* 0: panels = scale * dense; 1: dense = scale * the sum of panels, 0 where none reaches */
    float *dense;     /* rows x width */
    int64_t rows, width, inner; /* a column is `inner` elements: a kernel's, a map's */
    double scale;
    int64_t groups;
    float *values; /* groups x height x breadth x inner */
    int64_t height, breadth;
    const int32_t *row_at, *row_count; /* groups x rows: place in the panel, or -1; groups: how many are not -1 */
    int64_t row_step;                  /* where row_at is NULL: a group has `height` rows from group * row_step */
    const int32_t *column, *column_count; /* groups x columns, a group's first; groups; or NULL: all of them */
};
/* Return as puredrop_run, with PUREDROP_WRONG if row_at, row_count, column or column_count holds a number out of range:
 * lists are tensors that others can write to, and would lead beyond the panels. */
PUREDROP_EXPORT int puredrop_panels(const struct puredrop_panels *call);
/* List the kept units of a mask (groups x size, nonzero = kept): for each group its units, each unit's place or -1, and
 * their number. */
PUREDROP_EXPORT void puredrop_list(const float *keep, int64_t groups, int64_t size, int32_t *index, int32_t *at,
                                   int32_t *counts);

PUREDROP_EXPORT void puredrop_philox(uint64_t key, const uint32_t counter[4], uint32_t words[4]);
PUREDROP_EXPORT uint64_t puredrop_fold_in(uint64_t key, uint64_t data);

/* Return the name of a variant that this machine runs, fastest first, or NULL beyond the last. */
PUREDROP_EXPORT const char *puredrop_variant(int index);
/* Use a variant from now on: 0, or -1 without a change if this machine lacks it. Not to be called while a call runs. */
PUREDROP_EXPORT int puredrop_use_variant(const char *name);

#endif
