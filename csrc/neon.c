/* NEON, part of every 64-bit Arm: two Philox blocks at once, four float32. */
#if defined(__aarch64__)
#include <arm_neon.h>

#define ISA neon
#define WIDTH 16
#define LANES 2
#define ORDER ((lanes){0, 1})
typedef uint64_t lanes __attribute__((vector_size(16)));
typedef uint16_t judged;

static inline lanes product(lanes a, lanes b)
{
    return (lanes)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}
static inline lanes low_blocks(lanes a, lanes b) { return (lanes)vzip1q_u64((uint64x2_t)a, (uint64x2_t)b); }
static inline lanes high_blocks(lanes a, lanes b) { return (lanes)vzip2q_u64((uint64x2_t)a, (uint64x2_t)b); }

/* Gather one bit of each byte: mask a different bit in each of eight bytes, then add neighbours three times. */
static inline judged gathered(uint8x16_t where)
{
    const uint8x16_t weight = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t sum = vandq_u8(where, weight);
    for (int i = 0; i < 3; ++i)
        sum = vpaddq_u8(sum, sum);
    return vgetq_lane_u16(vreinterpretq_u16_u8(sum), 0);
}
static inline judged equal(lanes u, uint8_t digit) { return gathered(vceqq_u8((uint8x16_t)u, vdupq_n_u8(digit))); }
static inline judged at_least(lanes u, uint8_t digit) { return gathered(vcgeq_u8((uint8x16_t)u, vdupq_n_u8(digit))); }

static inline float32x4_t f16_load(const char *from)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)from)));
}
static inline void f16_store(char *to, float32x4_t v) { vst1_u8((uint8_t *)to, vreinterpret_u8_f16(vcvt_f16_f32(v))); }

#include "core.h"
#endif
