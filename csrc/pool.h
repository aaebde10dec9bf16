/* Torch's thread pool, where there is one. */
#ifndef PUREDROP_POOL_H
#define PUREDROP_POOL_H

#include <stdint.h>

/* Runs body over 0 to count, on the pool if count is above grain; what the pool said, 0 if nothing. */
int over_pool(int64_t count, int64_t grain, void (*body)(int64_t begin, int64_t end, void *context), void *context);

#endif
