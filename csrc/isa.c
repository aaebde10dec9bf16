/* Choice of the variant: the ones that this machine runs, and the one in use. */
#include "isa.h"

#include "checks.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { MOST = 3 };

static const struct isa *in_use = &isa_scalar;

const struct isa *isa_in_use(void) { return in_use; }

/* Return the index-th variant that this machine runs, fastest first, or NULL. */
static const struct isa *present(int index)
{
    const struct isa *found[MOST + 1] = {NULL};
    int count = 0;
#if defined(__x86_64__)
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        found[count++] = &isa_avx512;
    if (__builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C))
        found[count++] = &isa_avx2;
#elif defined(__aarch64__)
    found[count++] = &isa_neon;
#endif
    found[count] = &isa_scalar;
    return index <= count ? found[index] : NULL;
}

const char *puredrop_variant(int index)
{
    CHECK(index < 0 ? "index is negative" : NULL);
    const struct isa *const found = present(index);
    return found ? found->name : NULL;
}

int puredrop_use_variant(const char *name)
{
    const struct isa *found;
    CHECK(name ? NULL : "name is NULL");
    for (int i = 0; (found = present(i)); ++i)
        if (strcmp(found->name, name) == 0) {
            in_use = found;
            return 0;
        }
    return -1;
}
