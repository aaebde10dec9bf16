/* Runs calls read from standard input and writes their outputs: the compiled library without Python or torch, for
   sanitizers, emulators and other processors. Arguments: the variant, and the number of threads that make each call at
   once, each with outputs of its own that must agree; 1 if left out.

   A call comes as int64: the function (0 run, 1 panels, 2 list), the size of its struct and the number of blocks of
   memory; then the struct, whose pointers are not set; then each block: where in the struct its pointer belongs, its
   size, a misalignment, whether it is an output; and its bytes if it is not. An output is filled with 0xAA.

   Every block ends where its allocation ends, so that a sanitizer sees whatever reads or writes beyond. */
#include "puredrop.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 8, THREADS = 64, PARTS = 4 };

struct block {
    int64_t at, size, shift, is_output;
};
struct masks { /* arguments of puredrop_list */
    const float *keep;
    int64_t groups, size;
    int32_t *index, *at, *counts;
};
/* A thread's own copy of a call. */
struct caller {
    int64_t function;
    void *call;
    char *output[BLOCKS];
    int status;
};
struct part {
    void (*body)(int64_t, int64_t, void *);
    void *context;
    int64_t begin, end;
};

static void get(void *to, size_t size)
{
    if (size && fread(to, 1, size, stdin) != size) {
        fprintf(stderr, "driver: the input ends too early\n");
        exit(1);
    }
}

static void *run_part(void *context)
{
    const struct part *const part = context;
    part->body(part->begin, part->end, part->context);
    return NULL;
}

/* A pool: the later half first, in this thread. */
static int32_t two_halves(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void *), void *context)
{
    const int64_t middle = begin + (end - begin) / 2;
    (void)grain;
    body(middle, end, context);
    body(begin, middle, context);
    return 0;
}

/* A pool of threads. */
static int32_t parts_at_once(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void *),
                             void *context)
{
    pthread_t thread[PARTS];
    struct part part[PARTS];
    (void)grain;
    for (int i = 0; i < PARTS; ++i) {
        part[i] = (struct part){body, context, begin + (end - begin) * i / PARTS, begin + (end - begin) * (i + 1) / PARTS};
        if (pthread_create(&thread[i], NULL, run_part, &part[i]))
            abort();
    }
    for (int i = 0; i < PARTS; ++i)
        pthread_join(thread[i], NULL);
    return 0;
}

static void *make_call(void *context)
{
    struct caller *const caller = context;
    const struct masks *const masks = caller->call;
    if (caller->function == 0)
        caller->status = puredrop_run(caller->call);
    else if (caller->function == 1)
        caller->status = puredrop_panels(caller->call);
    else
        puredrop_list(masks->keep, masks->groups, masks->size, masks->index, masks->at, masks->counts);
    return NULL;
}

/* Read the next call into every caller, which share its inputs; return the number of blocks, or -1 at the end. */
static int64_t read_call(struct caller *caller, int count, struct block block[BLOCKS], char *input[BLOCKS])
{
    int64_t head[3];
    if (fread(head, sizeof head, 1, stdin) != 1)
        return -1;
    memset(caller, 0, (size_t)count * sizeof *caller);
    for (int c = 0; c < count; ++c) {
        caller[c].function = head[0];
        caller[c].call = malloc((size_t)head[1]);
    }
    get(caller[0].call, (size_t)head[1]);
    for (int c = 1; c < count; ++c)
        memcpy(caller[c].call, caller[0].call, (size_t)head[1]);
    for (int64_t b = 0; b < head[2]; ++b) {
        get(&block[b], sizeof block[b]);
        const size_t size = (size_t)block[b].size, shift = (size_t)block[b].shift;
        input[b] = block[b].is_output ? NULL : malloc(size + shift);
        if (input[b])
            get(input[b] + shift, size);
        for (int c = 0; c < count; ++c) {
            if (block[b].is_output)
                caller[c].output[b] = memset(malloc(size + shift), 0xAA, size + shift);
            char *const at = (input[b] ? input[b] : caller[c].output[b]) + shift;
            memcpy((char *)caller[c].call + block[b].at, &at, sizeof at);
        }
    }
    return head[2];
}

/* Write the outputs, in which all callers must agree. */
static int write_outputs(struct caller *caller, int count, const struct block block[BLOCKS], int64_t blocks)
{
    for (int64_t b = 0; b < blocks; ++b) {
        if (!block[b].is_output)
            continue;
        const size_t size = (size_t)block[b].size, shift = (size_t)block[b].shift;
        for (int c = 1; c < count; ++c)
            if (memcmp(caller[0].output[b] + shift, caller[c].output[b] + shift, size))
                return fprintf(stderr, "driver: two threads that make the same call differ\n"), 1;
        fwrite(caller[0].output[b] + shift, 1, size, stdout);
    }
    return 0;
}

int main(int argument_count, char **arguments)
{
    struct caller caller[THREADS];
    struct block block[BLOCKS];
    pthread_t thread[THREADS];
    char *input[BLOCKS];
    const int count = argument_count > 2 ? atoi(arguments[2]) : 1;
    if (argument_count < 2 || puredrop_use_variant(arguments[1])) {
        fprintf(stderr, "driver: no such variant; there are:");
        for (int i = 0; puredrop_variant(i); ++i)
            fprintf(stderr, " %s", puredrop_variant(i));
        return 1;
    }
    puredrop_use_pool(count > 1 ? parts_at_once : two_halves);
    for (int64_t blocks; (blocks = read_call(caller, count, block, input)) >= 0;) {
        for (int c = 1; c < count; ++c)
            if (pthread_create(&thread[c], NULL, make_call, &caller[c]))
                abort();
        make_call(&caller[0]);
        for (int c = 1; c < count; ++c)
            pthread_join(thread[c], NULL);
        for (int c = 0; c < count; ++c)
            if (caller[c].status)
                return fprintf(stderr, "driver: status %d\n", caller[c].status), 1;
        if (write_outputs(caller, count, block, blocks))
            return 1;
        for (int c = 0; c < count; ++c) {
            for (int64_t b = 0; b < blocks; ++b)
                free(caller[c].output[b]);
            free(caller[c].call);
        }
        for (int64_t b = 0; b < blocks; ++b)
            free(input[b]);
    }
    return 0;
}
