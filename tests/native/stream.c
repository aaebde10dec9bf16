/* Writes the bytes that decide masks to standard output, without end, for a test of randomness to read. Which ones:

   keys     the first 16 elements of keys 0, 1, 2, ...
   folded   the same of keys folded from one key with 0, 1, 2, ... (sites, steps, calls)
   strided  16 elements at a time, 2^20 apart, of one key (a channel, a column)
   samples  16 elements of each of the rows 0, 1, 2, ... of 4096 elements, of one key */
#include "puredrop.h"

#include <stdio.h>
#include <string.h>

int main(int count, char **arguments)
{
    const char *const which = count > 1 ? arguments[1] : "";
    static uint32_t words[1 << 14];
    for (uint64_t i = 0;; i += 1 << 12) {
        for (uint64_t k = 0; k < 1 << 12; ++k) {
            uint64_t key = 42, block = 0;
            if (strcmp(which, "keys") == 0)
                key = i + k;
            else if (strcmp(which, "folded") == 0)
                key = puredrop_fold_in(42, i + k);
            else if (strcmp(which, "strided") == 0)
                block = (i + k) << 16;
            else if (strcmp(which, "samples") == 0)
                block = (i + k) << 8;
            else
                return fprintf(stderr, "stream: expected keys, folded, strided or samples\n"), 2;
            const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0, 0};
            puredrop_philox(key, counter, words + 4 * k);
        }
        if (fwrite(words, sizeof words, 1, stdout) != 1)
            return 0;
    }
}
