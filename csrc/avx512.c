/* AVX-512 (F, BW, DQ, VL): eight Philox blocks at once, sixteen float32; decisions are the machine's own masks. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#include <immintrin.h>
#include <stdint.h>

#define ISA avx512
#define WIDTH 64
#define LANES 8
#define ORDER ((lanes){0, 4, 1, 5, 2, 6, 3, 7})
typedef uint64_t lanes __attribute__((vector_size(64)));
typedef uint64_t judged;

static inline lanes product(lanes a, lanes b) { return (lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
static inline lanes low_blocks(lanes a, lanes b) { return (lanes)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b); }
static inline lanes high_blocks(lanes a, lanes b) { return (lanes)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b); }
static inline judged equal(lanes u, uint8_t digit)
{
    return _mm512_cmpeq_epi8_mask((__m512i)u, _mm512_set1_epi8((char)digit));
}
static inline judged at_least(lanes u, uint8_t digit)
{
    return _mm512_cmpge_epu8_mask((__m512i)u, _mm512_set1_epi8((char)digit));
}

#define MASKED
static inline __m512 keep32(uint32_t word, int at, __m512 v) { return _mm512_maskz_mov_ps((__mmask16)(word >> at), v); }
static inline __m512d keep64(uint32_t word, int at, __m512d v) { return _mm512_maskz_mov_pd((__mmask8)(word >> at), v); }
static inline __m512 f16_load(const char *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
static inline void f16_store(char *to, __m512 v) { _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(v, 0)); }

#include "core.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
