/* Torch's thread pool, if it was handed over. */
#ifndef PUREDROP_POOL_H
#define PUREDROP_POOL_H

#include <stdint.h>

/* Run body over 0 to count, on the pool if count exceeds grain; return the pool's status, 0 for success. */
int over_pool(int64_t count, int64_t grain, void (*body)(int64_t begin, int64_t end, void *context), void *context);

#endif
