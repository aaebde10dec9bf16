/* Runs calls read from standard input and writes their outputs: the compiled library without Python or torch, for
   sanitizers, emulators and other processors. A call comes as int64: sizes in bytes of the four operands and the ids,
   a misalignment, the size of the call; then the call itself, then x, second, third and the ids.

   Every buffer ends where its block of memory ends, so that a sanitizer sees whatever reads or writes beyond. */
#include "puredrop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void get(void *to, size_t size)
{
    if (size && fread(to, 1, size, stdin) != size) {
        fprintf(stderr, "driver: the input ends too early\n");
        exit(1);
    }
}

static int32_t two_halves(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void *), void *context)
{
    const int64_t middle = begin + (end - begin) / 2;
    (void)grain;
    body(middle, end, context);
    body(begin, middle, context);
    return 0;
}

int main(int count, char **arguments)
{
    int64_t head[7];
    if (count < 2 || puredrop_use_variant(arguments[1])) {
        fprintf(stderr, "driver: no such variant; there are:");
        for (int i = 0; puredrop_variant(i); ++i)
            fprintf(stderr, " %s", puredrop_variant(i));
        return 1;
    }
    puredrop_use_pool(two_halves);
    while (fread(head, sizeof head, 1, stdin) == 1) {
        struct puredrop_call *call = malloc((size_t)head[6]);
        char *block[5] = {NULL};
        get(call, (size_t)head[6]);
        for (int b = 0; b < 5; ++b) {
            const size_t shift = b < 4 ? (size_t)head[5] : 0;
            if (head[b]) {
                block[b] = malloc((size_t)head[b] + shift);
                if (b)
                    get(block[b] + shift, (size_t)head[b]);
                else
                    memset(block[b], 0xAA, (size_t)head[b] + shift);
            }
            if (b < 4)
                call->operand[b] = head[b] ? block[b] + shift : NULL;
        }
        for (int64_t d = 0; d < call->rank; ++d)
            if (call->dim[d].ids)
                call->dim[d].ids = (const int64_t *)(void *)block[4];
        if (puredrop_run(call))
            return 1;
        fwrite(call->operand[0], 1, (size_t)head[0], stdout);
        for (int b = 0; b < 5; ++b)
            free(block[b]);
        free(call);
    }
    return 0;
}
