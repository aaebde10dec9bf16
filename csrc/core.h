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

/* Elements whose first digit equals the threshold's, counted from the first one drawn. */
struct ties {
    size_t count;
    uint32_t element[16 * DRAW_MOST + 1];
};

static inline lanes every(uint64_t value) { return (lanes){0} + value; }
static inline lanes paired(lanes low, lanes high) { return (low & every(UINT32_MAX)) | high << 32; }

/* A Philox word lives in the low half of a 64-bit lane; whatever is in the high half is never read. Two sets of lanes
   side by side hide the latency of the rounds, each of which waits for the one before. */
static inline __attribute__((always_inline)) void draw_sets(const struct rule *rule, const lanes key[10][2],
                                                            uint64_t block, int sets, uint8_t *bits, struct ties *ties,
                                                            size_t done)
{
    const lanes m0 = every(0xD2511F53u), m1 = every(0xCD9E8D57u);
    lanes c0[2], c1[2], c2[2], c3[2];
    for (int i = 0; i < sets; ++i) { /* the first round, whose second product is 0 */
        const lanes counter = ORDER + (block + done + (uint64_t)i * LANES), a = product(counter, m0);
        c0[i] = (counter >> 32) ^ key[0][0], c1[i] = every(0), c2[i] = (a >> 32) ^ key[0][1], c3[i] = a;
    }
    for (int round = 1; round < 10; ++round)
        for (int i = 0; i < sets; ++i) {
            const lanes a = product(c0[i], m0), b = product(c2[i], m1);
            c0[i] = (b >> 32) ^ (c1[i] ^ key[round][0]), c1[i] = b;
            c2[i] = (a >> 32) ^ (c3[i] ^ key[round][1]), c3[i] = a;
        }
    for (int i = 0; i < sets; ++i) {
        const lanes front = paired(c0[i], c1[i]), back = paired(c2[i], c3[i]);
        const lanes u[2] = {low_blocks(front, back), high_blocks(front, back)};
        const size_t at = done + (size_t)i * LANES;
        for (int half = 0; half < 2; ++half) {
            const judged keep = at_least(u[half], rule->digit[0]);
            memcpy(bits + 2 * at + (size_t)half * sizeof keep, &keep, sizeof keep);
            if (rule->planes > 1) {
                uint64_t left = equal(u[half], rule->digit[0]);
                do { /* one tie or none needs no branch that could be mispredicted */
                    ties->element[ties->count] = 16 * (uint32_t)at + 8 * LANES * (uint32_t)half +
                                                 (uint32_t)__builtin_ctzll(left | (uint64_t)1 << 63);
                    ties->count += left != 0;
                    left &= left - 1;
                } while (__builtin_expect(left != 0, 0));
            }
        }
    }
}

static void draw(const struct rule *rule, uint64_t block, size_t blocks, uint8_t *bits)
{
    lanes key[10][2];
    struct ties ties;
    size_t done = 0;
    if (rule->all) {
        memset(bits, 0, 2 * blocks);
        return;
    }
    for (uint32_t round = 0; round < 10; ++round) {
        key[round][0] = every((uint32_t)((uint32_t)rule->key + 0x9E3779B9u * round));
        key[round][1] = every((uint32_t)((uint32_t)(rule->key >> 32) + 0xBB67AE85u * round));
    }
    ties.count = 0;
    for (; done + LANES < blocks; done += 2 * LANES)
        draw_sets(rule, key, block, 2, bits, &ties, done);
    if (done < blocks)
        draw_sets(rule, key, block, 1, bits, &ties, done);
    for (size_t i = 0; i < ties.count; ++i)
        if (!rule_keeps_tied(rule, 16 * block + ties.element[i]))
            bits[ties.element[i] / 8] &= (uint8_t)~(1u << (ties.element[i] & 7));
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

/* Every dtype's load and store of a vector, and its rounding of one; arithmetic is in float32, or float64 for itself. */
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

/* 16 elements a turn, whatever the vector's width; the last few by way of padded copies. */
typedef void group_fn(char *const *operand, size_t at, uint32_t word, int shift, double scale);
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
    static inline void name##_group_##type(char *const *operand, size_t at, uint32_t word, int shift, double scale)    \
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
#define OP(type, vector, number, mask, bits, SIZE)                                                                     \
    LOOP(DROPOUT, type, vector, number, SIZE, DROPPED(type, bits, x))                                                  \
    LOOP(RELU, type, vector, number, SIZE, DROPPED(type, bits, UNLESS_NEGATIVE(x, x, vector, mask)))                   \
    LOOP(RELU_BACKWARD, type, vector, number, SIZE, UNLESS_NEGATIVE(A(type), type##_round(x * s), vector, mask))       \
    LOOP(GELU, type, vector, number, SIZE, DROPPED(type, bits, type##_round(gelu##bits(x))))                           \
    LOOP(GELU_BACKWARD, type, vector, number, SIZE, type##_round(DROPPED(type, bits, x) * gelu_slope##bits(A(type))))  \
    LOOP(ADD, type, vector, number, SIZE, type##_round(DROPPED(type, bits, x) + A(type)))                              \
    LOOP(BIAS_ADD, type, vector, number, SIZE, type##_round(DROPPED(type, bits, type##_round(x + B(type))) + A(type)))
OP(f32, f32, float, u32, 32, 4)
OP(f64, f64, double, u64, 64, 8)
OP(bf16, f32, float, u32, 32, 2)
OP(f16, f32, float, u32, 32, 2)

#define EVERY_DTYPE(op) [op] = {op##_f32, op##_f64, op##_bf16, op##_f16}
#define JOINED(a, b) a##b
#define NAMED(isa) JOINED(isa_, isa)
#define TEXT(isa) #isa
#define QUOTED(isa) TEXT(isa)
const struct isa NAMED(ISA) = {
    .name = QUOTED(ISA),
    .lanes = LANES,
    .draw = draw,
    .apply = {EVERY_DTYPE(DROPOUT), EVERY_DTYPE(RELU), EVERY_DTYPE(RELU_BACKWARD), EVERY_DTYPE(GELU),
              EVERY_DTYPE(GELU_BACKWARD), EVERY_DTYPE(ADD), EVERY_DTYPE(BIAS_ADD)},
};
