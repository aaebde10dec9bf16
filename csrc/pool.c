#include "pool.h"

#include "puredrop.h"

static puredrop_parallel_for *torch_pool;

void puredrop_use_pool(puredrop_parallel_for *pool) { torch_pool = pool; }

int over_pool(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void *), void *context)
{
    if (torch_pool && count > grain)
        return torch_pool(0, count, grain, body, context);
    body(0, count, context);
    return 0;
}
