/* The work of one instruction set, written once. A variant (scalar.c, avx2.c, ...) defines its name, its vectors and
   what C cannot say about them, then includes this file:

   ISA, WIDTH (bytes of a vector of numbers)
   LANES, lanes (so many 64-bit integers), ORDER: how they count blocks, so that low_blocks and high_blocks, which
   interleave two of them, give the bytes of all blocks in element order; product(a, b) of the lanes' low halves
   judged (an integer, one bit for each byte of lanes), at_least(u, digit), equal(u, digit)
   MASKED, only where the machine masks by bits: keep32(word, at, v), keep64(word, at, v)
   f16_load, f16_store: WIDTH / 4 half-precision numbers as float32, rounded to nearest even */
#include "isa.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE lanes every(uint64_t value) { return (lanes){0} + value; }
INLINE lanes paired(lanes low, lanes high) { return (low & every(UINT32_MAX)) | high << 32; }

INLINE void every_key(const struct rule *rule, lanes key[10][2])
{
    for (uint32_t round = 0; round < 10; ++round) {
        key[round][0] = every((uint32_t)((uint32_t)rule->key + 0x9E3779B9u * round));
        key[round][1] = every((uint32_t)((uint32_t)(rule->key >> 32) + 0xBB67AE85u * round));
    }
}

/* Treat 16 elements from byte `at` of each operand on; the bits of word from bit `shift` on say which are kept. */
typedef void group_fn(char *const *operand, size_t at, uint32_t word, int shift, double scale);

/* Groups that are treated between the rounds of a draw: `bits` says what they keep, an element has `width` bytes. */
struct groups {
    group_fn *treat;
    char *const *operand;
    size_t at, width;
    const uint8_t *bits;
    double scale;
};

/* Philox on the counters (c0, c1, plane, 0) of one or two sets of lanes, which hide the latency of each other's rounds;
   as many blocks are drawn as `groups`, if there are any, are treated. A word lives in the low half of a 64-bit lane;
   what is in the high half is never read. */
INLINE void philox(const lanes key[10][2], const lanes *counter, uint32_t plane, int sets, lanes front[2],
                   lanes back[2], const struct groups *groups)
{
    const lanes m0 = every(0xD2511F53u), m1 = every(0xCD9E8D57u);
    const uint64_t second = plane * (uint64_t)0xCD9E8D57u;
    lanes c0[2], c1[2], c2[2], c3[2];
#pragma GCC unroll 2
    for (int i = 0; i < sets; ++i) { /* the first round's second product is the same for all sets */
        const lanes a = product(counter[i], m0);
        c0[i] = (counter[i] >> 32) ^ every(second >> 32) ^ key[0][0], c1[i] = every((uint32_t)second);
        c2[i] = (a >> 32) ^ key[0][1], c3[i] = a;
    }
#pragma GCC unroll 9
    for (int round = 1; round < 10; ++round) {
#pragma GCC unroll 2
        for (int i = 0; i < sets; ++i) {
            const lanes a = product(c0[i], m0), b = product(c2[i], m1);
            c0[i] = (b >> 32) ^ (c1[i] ^ key[round][0]), c1[i] = b;
            c2[i] = (a >> 32) ^ (c3[i] ^ key[round][1]), c3[i] = a;
        }
        if (groups)
#pragma GCC unroll 16
            for (int g = (round - 1) * 2 * LANES / 9; g < round * 2 * LANES / 9; ++g) {
                uint16_t word;
                memcpy(&word, groups->bits + 2 * g, sizeof word);
                groups->treat(groups->operand, groups->at + (size_t)g * 16 * groups->width, word, 0, groups->scale);
            }
    }
#pragma GCC unroll 2
    for (int i = 0; i < sets; ++i)
        front[i] = paired(c0[i], c1[i]), back[i] = paired(c2[i], c3[i]);
}

/* Elements whose first digit equals the threshold's, counted from the first one drawn. About 8 of a chunk do; as soon as
   more than TIES_WAIT wait they are settled, so that the stack need not hold all 2048. By then two more sets of lanes may
   have added theirs, and as much as two vectors is written beyond the last one. */
#ifndef TIES_WAIT
#define TIES_WAIT 32
#endif
enum { TIES_MOST = TIES_WAIT + 2 * 16 * LANES + 2 * LANES };

/* Decisions of one or two sets of lanes from a block on, those that tie left open; returns how many do by now. */
INLINE size_t decide(const struct rule *rule, const lanes key[10][2], uint64_t block, size_t done, int sets,
                     uint8_t *bits, uint64_t ties[TIES_MOST], size_t count, const struct groups *groups)
{
    lanes counter[2], front[2], back[2], u[4];
#pragma GCC unroll 2
    for (int i = 0; i < sets; ++i)
        counter[i] = ORDER + (block + done + (uint64_t)i * LANES);
    philox(key, counter, 0, sets, front, back, groups);
#pragma GCC unroll 4
    for (int i = 0; i < 2 * sets; ++i) {
        u[i] = i & 1 ? high_blocks(front[i / 2], back[i / 2]) : low_blocks(front[i / 2], back[i / 2]);
        const judged keep = at_least(u[i], rule->digit[0]);
        memcpy(bits + 2 * done + (size_t)i * sizeof keep, &keep, sizeof keep);
    }
    if (rule->planes > 1) {
        uint64_t tied[4] = {0};
#pragma GCC unroll 4
        for (int i = 0; i < 2 * sets; ++i)
            tied[i * LANES / 8] |= (uint64_t)equal(u[i], rule->digit[0]) << (i * 8 * LANES & 63);
#pragma GCC unroll 4
        for (int w = 0; 4 * w < sets * LANES; ++w) {
            uint64_t left = tied[w];
            do /* two or fewer ties, the usual case, need no branch that could be mispredicted */
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    ties[count] = 16 * done + 64 * (size_t)w + (size_t)__builtin_ctzll(left | (uint64_t)1 << 63);
                    count += left != 0;
                    left &= left - 1;
                }
            while (__builtin_expect(left != 0, 0));
        }
    }
    return count;
}

/* The elements that tie are decided by their second digits, two sets of lanes at a time; the next ones seldom matter. */
static void settle(const struct rule *rule, const lanes key[10][2], uint64_t block, uint8_t *bits,
                   uint64_t ties[TIES_MOST], size_t count)
{
    memset(ties + count, 0, 2 * LANES * sizeof ties[0]);
    for (size_t at = 0; at < count; at += 2 * LANES) {
        lanes element[2], counter[2], front[2], back[2], digit[2];
        uint64_t found[2 * LANES];
        memcpy(element, ties + at, sizeof element);
        for (int i = 0; i < 2; ++i)
            counter[i] = (element[i] >> 4) + block;
        philox(key, counter, 1, 2, front, back, NULL);
        for (int i = 0; i < 2; ++i) {
            const lanes behind = (lanes)((element[i] & 8) != 0), word = (front[i] & ~behind) | (back[i] & behind);
            digit[i] = word >> ((element[i] & 7) << 3) & 0xFF;
        }
        memcpy(found, digit, sizeof found);
        for (size_t i = 0; i < 2 * LANES && at + i < count; ++i) {
            const uint64_t e = ties[at + i];
            unsigned drops = found[i] < rule->digit[1];
            if (__builtin_expect(found[i] == rule->digit[1], 0))
                drops = !rule_keeps_tied(rule, 16 * block + e);
            bits[e / 8] &= (uint8_t)~(drops << (e & 7));
        }
    }
}

static void draw(const struct rule *rule, uint64_t block, size_t blocks, uint8_t *bits)
{
    const struct rule own = *rule; /* a copy, so that no store of decisions can change it */
    lanes key[10][2];
    uint64_t ties[TIES_MOST];
    size_t done = 0;
    if (own.all) {
        memset(bits, 0, 2 * blocks);
        return;
    }
    every_key(rule, key);
    do {
        size_t count = 0;
        for (; done + LANES < blocks && count <= TIES_WAIT; done += 2 * LANES)
            count = decide(&own, key, block, done, 2, bits, ties, count, NULL);
        if (done < blocks && done + LANES >= blocks && count <= TIES_WAIT) {
            count = decide(&own, key, block, done, 1, bits, ties, count, NULL);
            done = blocks;
        }
        settle(&own, key, block, bits, ties, count);
    } while (__builtin_expect(done < blocks, 0));
}

/* Whole chunks, drawn and treated in one: while one is treated the next is drawn, since the first is work for memory
   and the second for the arithmetic units. */
INLINE void stream(group_fn *treat, size_t width, char *const *operand, size_t chunks, const struct rule *rule,
                   uint64_t block, const uint8_t first[CHUNK / 8])
{
    const struct rule own = *rule;
    char *const place[OPERANDS] = {operand[0], operand[1], operand[2], operand[3]};
    uint8_t bits[2][CHUNK / 8 + DRAW_OVERRUN];
    struct groups groups = {treat, place, 0, width, bits[0], own.scale};
    lanes key[10][2];
    uint64_t ties[TIES_MOST];
    every_key(rule, key);
    memcpy(bits[0], first, CHUNK / 8);
    for (size_t chunk = 1; chunk < chunks; ++chunk) {
        size_t done = 0;
        block += CHUNK / 16;
        do {
            size_t count = 0;
            for (; done < CHUNK / 16 && count <= TIES_WAIT; done += 2 * LANES, groups.at += 2 * LANES * 16 * width) {
                groups.bits = bits[(chunk - 1) & 1] + 2 * done;
                count = decide(&own, key, block, done, 2, bits[chunk & 1], ties, count, &groups);
            }
            settle(&own, key, block, bits[chunk & 1], ties, count);
        } while (__builtin_expect(done < CHUNK / 16, 0));
    }
    for (size_t i = 0; i < CHUNK / 16; ++i, groups.at += 16 * width) {
        uint16_t word;
        memcpy(&word, bits[(chunks - 1) & 1] + 2 * i, sizeof word);
        treat(place, groups.at, word, 0, own.scale);
    }
}

typedef float f32 __attribute__((vector_size(WIDTH)));
typedef double f64 __attribute__((vector_size(WIDTH)));
typedef uint32_t u32 __attribute__((vector_size(WIDTH)));
typedef uint64_t u64 __attribute__((vector_size(WIDTH)));
typedef uint16_t u16 __attribute__((vector_size(WIDTH / 2)));

#include "gelu.h"

#ifndef MASKED /* lane i of v, or +0 where bit at + i of word is 0 */
static inline f32 keep32(uint32_t word, int at, f32 v)
{
    static const uint32_t weights[] = {1, 2, 4, 8, 16, 32, 64, 128};
    u32 weight;
    memcpy(&weight, weights, sizeof weight);
    weight <<= at;
    return (f32)((u32)v & (u32)((word & weight) == weight));
}
static inline f64 keep64(uint32_t word, int at, f64 v)
{
    static const uint64_t weights[] = {1, 2, 4, 8};
    u64 weight;
    memcpy(&weight, weights, sizeof weight);
    weight <<= at;
    return (f64)((u64)v & (u64)((word & weight) == weight));
}
#endif

/* Load, store and rounding of a vector for each dtype; arithmetic is in float32, for float64 in float64. */
static inline f32 f32_load(const char *from) { f32 v; memcpy(&v, from, sizeof v); return v; }
static inline f64 f64_load(const char *from) { f64 v; memcpy(&v, from, sizeof v); return v; }
static inline void f32_store(char *to, f32 v) { memcpy(to, &v, sizeof v); }
static inline void f64_store(char *to, f64 v) { memcpy(to, &v, sizeof v); }
static inline f32 f32_round(f32 v) { return v; }
static inline f64 f64_round(f64 v) { return v; }
static inline f32 f16_round(f32 v) { char half[WIDTH / 2]; f16_store(half, v); return f16_load(half); }

/* bfloat16 is the upper half of a float32: round it to nearest even, NaN to a quiet one, and leave it in place. */
static inline f32 bf16_round(f32 v)
{
    const u32 raw = (u32)v, rounded = raw + 0x7FFF + ((raw >> 16) & 1), nan = (u32)(v != v);
    return (f32)(((rounded & ~nan) | (0x7FC00000u & nan)) & 0xFFFF0000u);
}
static inline f32 bf16_load(const char *from)
{
    u16 half;
    memcpy(&half, from, sizeof half);
    return (f32)(__builtin_convertvector(half, u32) << 16);
}
static inline void bf16_store(char *to, f32 v)
{
    const u16 half = __builtin_convertvector((u32)v >> 16, u16);
    memcpy(to, &half, sizeof half);
}

/* Treat the last elements of a run through padded copies. */
static void last_group(group_fn *group, char *const *operand, size_t at, size_t size, uint32_t word, int shift, double scale)
{
    char padded[OPERANDS][16 * sizeof(double)] = {{0}}, *pad[OPERANDS];
    for (int o = 0; o < OPERANDS; ++o) {
        pad[o] = padded[o];
        if (o && operand[o])
            memcpy(pad[o], operand[o] + at, size);
    }
    group(pad, 0, word, shift, scale);
    memcpy(operand[0] + at, pad[0], size);
}

/* VALUE reads x, the operands A and B, and drops by `word` from bit `first` on. */
#define LOOP(name, type, vector, number, SIZE, VALUE)                                                                  \
    INLINE void name##_group_##type(char *const *operand, size_t at, uint32_t word, int shift, double scale)           \
    {                                                                                                                  \
        const vector s = (vector){0} + (number)scale;                                                                  \
        for (int lane = 0; lane < 16; lane += (int)(WIDTH / sizeof(number))) {                                         \
            const size_t place = at + (size_t)lane * SIZE;                                                             \
            const vector x = type##_load(operand[1] + place);                                                          \
            const int first = shift + lane;                                                                            \
            (void)word, (void)first;                                                                                   \
            type##_store(operand[0] + place, VALUE);                                                                   \
        }                                                                                                              \
    }                                                                                                                  \
    static void name##_##type(char *const *operand, size_t n, const uint8_t *keep, unsigned shift, double scale)       \
    {                                                                                                                  \
        uint32_t word;                                                                                                 \
        size_t i = 0;                                                                                                  \
        for (; i + 16 <= n; i += 16) {                                                                                 \
            memcpy(&word, keep + i / 8, sizeof word);                                                                  \
            name##_group_##type(operand, i * SIZE, word, (int)shift, scale);                                           \
        }                                                                                                              \
        memcpy(&word, keep + i / 8, sizeof word);                                                                      \
        if (i < n)                                                                                                     \
            last_group(name##_group_##type, operand, i * SIZE, (n - i) * SIZE, word, (int)shift, scale);               \
    }

/* Values, each step rounded to the dtype; `mask` is the integer vector of the arithmetic, `bits` its width. */
#define A(type) type##_load(operand[2] + place)
#define B(type) type##_load(operand[3] + place)
#define DROPPED(type, bits, v) keep##bits(word, first, type##_round((v) * s))
#define UNLESS_NEGATIVE(sign, v, vector, mask) ((vector)((mask)(v) & ~(mask)((sign) <= 0)))
#define RELU_OF(x, vector, mask) ((vector)((mask)(x) & ~(mask)((x) < 0))) /* keeps -0.0, as torch does */
#define OP(type, vector, number, mask, bits, SIZE)                                                                     \
    LOOP(DROPOUT, type, vector, number, SIZE, DROPPED(type, bits, x))                                                  \
    LOOP(RELU, type, vector, number, SIZE, DROPPED(type, bits, RELU_OF(x, vector, mask)))                              \
    LOOP(RELU_BACKWARD, type, vector, number, SIZE, UNLESS_NEGATIVE(A(type), type##_round(x * s), vector, mask))       \
    LOOP(GELU, type, vector, number, SIZE, DROPPED(type, bits, type##_round(gelu##bits(x))))                           \
    LOOP(GELU_BACKWARD, type, vector, number, SIZE, type##_round(DROPPED(type, bits, x) * gelu_slope##bits(A(type))))  \
    LOOP(ADD, type, vector, number, SIZE, type##_round(DROPPED(type, bits, x) + A(type)))                              \
    LOOP(BIAS_ADD, type, vector, number, SIZE, type##_round(DROPPED(type, bits, type##_round(x + B(type))) + A(type)))
OP(f32, f32, float, u32, 32, 4)
OP(f64, f64, double, u64, 64, 8)
OP(bf16, f32, float, u32, 32, 2)
OP(f16, f32, float, u32, 32, 2)

#define STREAM(name, type, SIZE)                                                                                       \
    static void name##_stream_##type(char *const *operand, size_t chunks, const struct rule *rule, uint64_t block,     \
                                     const uint8_t first[CHUNK / 8])                                                   \
    {                                                                                                                  \
        stream(name##_group_##type, SIZE, operand, chunks, rule, block, first);                                        \
    }
#define STREAMS(name) STREAM(name, f32, 4) STREAM(name, f64, 8) STREAM(name, bf16, 2) STREAM(name, f16, 2)
STREAMS(DROPOUT)
STREAMS(RELU)
STREAMS(ADD)
STREAMS(BIAS_ADD)

#define EVERY_DTYPE(op, form) [op] = {op##form##f32, op##form##f64, op##form##bf16, op##form##f16}
#define JOINED(a, b) a##b
#define NAMED(isa) JOINED(isa_, isa)
#define TEXT(isa) #isa
#define QUOTED(isa) TEXT(isa)
const struct isa NAMED(ISA) = {
    .name = QUOTED(ISA),
    .lanes = LANES,
    .draw = draw,
    .apply = {EVERY_DTYPE(DROPOUT, _), EVERY_DTYPE(RELU, _), EVERY_DTYPE(RELU_BACKWARD, _), EVERY_DTYPE(GELU, _),
              EVERY_DTYPE(GELU_BACKWARD, _), EVERY_DTYPE(ADD, _), EVERY_DTYPE(BIAS_ADD, _)},
    .stream = {EVERY_DTYPE(DROPOUT, _stream_), EVERY_DTYPE(RELU, _stream_), EVERY_DTYPE(ADD, _stream_),
               EVERY_DTYPE(BIAS_ADD, _stream_)},
};
