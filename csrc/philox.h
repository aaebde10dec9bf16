/* Philox4x32-10: four random words for a 64-bit key and a 128-bit counter (Salmon et al., SC 2011). */
#ifndef PUREDROP_PHILOX_H
#define PUREDROP_PHILOX_H

#include <stdint.h>

#if defined(_WIN32)
#define PUREDROP_EXPORT __declspec(dllexport)
#else
#define PUREDROP_EXPORT __attribute__((visibility("default")))
#endif

PUREDROP_EXPORT void puredrop_philox(uint64_t key, const uint32_t counter[4], uint32_t words[4]);

#endif
