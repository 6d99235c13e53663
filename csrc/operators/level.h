/* The operators at each level of instructions. */
#ifndef CAPPY_LEVEL_H
#define CAPPY_LEVEL_H

#include "operators.h"

#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
#define CAPPY_X86
#endif

typedef struct {
    cappy_attend *attend;
    cappy_norm_rows *norm_rows;
    cappy_gelu_rows *gelu_rows;
} cappy_level;

extern const cappy_level cappy_level_plain, cappy_level_avx2, cappy_level_avx512;

#endif
