/* Philox4x32-10 (Salmon et al., SC 2011): four random words for a 64-bit key and a 128-bit counter; and what a key and a
   drop probability decide by it. */
#include "checks.h"
#include "isa.h"

#include <math.h>

void puredrop_philox(uint64_t key, const uint32_t counter[4], uint32_t words[4])
{
    CHECK(counter && words ? NULL : "counter or words is NULL");
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0, c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1, c3 = (uint32_t)a;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

uint64_t puredrop_fold_in(uint64_t key, uint64_t data)
{
    const uint32_t counter[4] = {(uint32_t)data, (uint32_t)(data >> 32), 0, 1 /* domain 1: fold-in */};
    uint32_t words[4];
    puredrop_philox(key, counter, words);
    return words[0] | (uint64_t)words[1] << 32;
}

struct rule rule_of(uint64_t key, double p)
{
    const double k = nearbyint(ldexp(p, 64)); /* rounds half to even; ldexp is exact */
    struct rule rule = {.key = key, .planes = 1, .all = k >= 0x1p64, .scale = 1 / (1 - k * 0x1p-64)};
    const uint64_t threshold = rule.all ? 0 : (uint64_t)k;
    for (int plane = 0; plane < 8; ++plane) {
        rule.digit[plane] = (uint8_t)(threshold >> (56 - 8 * plane));
        if (rule.digit[plane])
            rule.planes = plane + 1;
    }
    return rule;
}

int rule_keeps_tied(const struct rule *rule, uint64_t j)
{
    for (int plane = 1; plane < rule->planes; ++plane) {
        const uint32_t counter[4] = {(uint32_t)(j >> 4), (uint32_t)(j >> 36), (uint32_t)plane, 0 /* domain 0: draws */};
        uint32_t words[4];
        puredrop_philox(rule->key, counter, words);
        const uint8_t u = (uint8_t)(words[(j & 15) / 4] >> (8 * (j & 3)));
        if (u != rule->digit[plane])
            return u > rule->digit[plane];
    }
    return 1;
}
