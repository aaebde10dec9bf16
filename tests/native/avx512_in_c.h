/* AVX-512 in plain C, for machines without it: SIMDe's intrinsics under Intel's names. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

/* What SIMDe lacks, from the halves. */
static inline __m512 emulated_cvtph_ps(simde__m256i half)
{
    simde__m512_private wide;
    simde__m256i_private narrow = simde__m256i_to_private(half);
    for (int i = 0; i < 2; ++i)
        wide.m256[i] = simde_mm256_cvtph_ps(narrow.m128i[i]);
    return simde__m512_from_private(wide);
}

static inline simde__m256i emulated_cvtps_ph(__m512 value)
{
    simde__m512_private wide = simde__m512_to_private(value);
    simde__m256i_private narrow;
    for (int i = 0; i < 2; ++i)
        narrow.m128i[i] = simde_mm256_cvtps_ph(wide.m256[i], 0);
    return simde__m256i_from_private(narrow);
}
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(half) emulated_cvtph_ps(half)
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(value, mode) emulated_cvtps_ph(value)
