/* AVX2 with F16C: four Philox blocks at once, eight float32. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif
#include <immintrin.h>
#include <stdint.h>

#define ISA avx2
#define WIDTH 32
#define LANES 4
#define ORDER ((lanes){0, 2, 1, 3})
typedef uint64_t lanes __attribute__((vector_size(32)));
typedef uint32_t judged;

static inline lanes product(lanes a, lanes b) { return (lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
static inline lanes low_blocks(lanes a, lanes b) { return (lanes)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b); }
static inline lanes high_blocks(lanes a, lanes b) { return (lanes)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b); }
static inline judged equal(lanes u, uint8_t digit)
{
    return (judged)_mm256_movemask_epi8(_mm256_cmpeq_epi8((__m256i)u, _mm256_set1_epi8((char)digit)));
}
static inline judged at_least(lanes u, uint8_t digit)
{
    const __m256i larger = _mm256_max_epu8((__m256i)u, _mm256_set1_epi8((char)digit));
    return (judged)_mm256_movemask_epi8(_mm256_cmpeq_epi8(larger, (__m256i)u));
}

static inline __m256 f16_load(const char *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }
static inline void f16_store(char *to, __m256 v) { _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(v, 0)); }

#include "core.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
