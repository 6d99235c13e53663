/* Vectors whose lanes a mask switches off: AVX-512, where the processor has it. */
#ifndef CAPPY_MASKS_H
#define CAPPY_MASKS_H

#include <stdbool.h>

#if defined(__x86_64__) && !defined(CAPPY_PORTABLE) && !defined(CAPPY_NO_AVX512)
#include <immintrin.h>

/* For functions that use them. */
#define CAPPY_MASKS \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi,bmi2,popcnt")))

/* From Intel's Ice Lake and AMD's Zen 4 on. */
static inline bool cappy_has_masks(void)
{
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}
#else
static inline bool cappy_has_masks(void) { return false; }
#endif

#endif
