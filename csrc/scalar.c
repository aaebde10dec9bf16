/* Plain C for any little-endian machine: one Philox block at a time; numbers in vectors that the compiler breaks up. */
#include <stdint.h>
#include <string.h>

#define ISA scalar
#define WIDTH 16
#define LANES 1
#define ORDER ((lanes){0})
typedef uint64_t lanes __attribute__((vector_size(8)));
typedef uint8_t judged;
typedef float quad __attribute__((vector_size(16)));

static inline lanes product(lanes a, lanes b) { return (lanes){(uint64_t)(uint32_t)a[0] * (uint32_t)b[0]}; }
static inline lanes low_blocks(lanes a, lanes b) { return (void)b, a; }
static inline lanes high_blocks(lanes a, lanes b) { return (void)a, b; }
static inline judged equal(lanes u, uint8_t digit)
{
    unsigned found = 0;
    for (int i = 0; i < 8; ++i)
        found |= (unsigned)((uint8_t)(u[0] >> 8 * i) == digit) << i;
    return (judged)found;
}
static inline judged at_least(lanes u, uint8_t digit)
{
    unsigned found = 0;
    for (int i = 0; i < 8; ++i)
        found |= (unsigned)((uint8_t)(u[0] >> 8 * i) >= digit) << i;
    return (judged)found;
}

/* Half precision: 5 bits of exponent (bias 15), 10 of fraction. */
static inline float float_of_half(uint16_t half)
{
    const uint32_t size = half & 0x7FFF; /* subnormals count multiples of 2^-24; other numbers need another exponent bias */
    const float subnormal = (float)size * 0x1p-24f;
    uint32_t raw = (size << 13) + (size < 0x7C00 ? 112u << 23 : 224u << 23);
    if (size < 0x400)
        memcpy(&raw, &subnormal, sizeof raw);
    raw |= (uint32_t)(half & 0x8000) << 16;
    float value;
    memcpy(&value, &raw, sizeof value);
    return value;
}
static inline uint16_t half_of_float(float value)
{
    uint32_t raw, sum;
    memcpy(&raw, &value, sizeof raw);
    const uint32_t sign = raw >> 16 & 0x8000, size = raw & 0x7FFFFFFF;
    const float shifted = (value < 0 ? -value : value) + 0.5f; /* adding 0.5 rounds a subnormal to a multiple of 2^-24 */
    memcpy(&sum, &shifted, sizeof sum);
    if (size >= 0x477FF000) /* above the largest finite value, 65504, or NaN */
        return (uint16_t)(sign | (size > 0x7F800000 ? 0x7E00 : 0x7C00));
    return (uint16_t)(sign | (size < 0x38800000 ? sum - 0x3F000000 : (size - (112u << 23) + 0xFFF + (size >> 13 & 1)) >> 13));
}
static inline quad f16_load(const char *from)
{
    uint16_t half[4];
    memcpy(half, from, sizeof half);
    return (quad){float_of_half(half[0]), float_of_half(half[1]), float_of_half(half[2]), float_of_half(half[3])};
}
static inline void f16_store(char *to, quad v)
{
    const uint16_t half[4] = {half_of_float(v[0]), half_of_float(v[1]), half_of_float(v[2]), half_of_float(v[3])};
    memcpy(to, half, sizeof half);
}

#include "core.h"
