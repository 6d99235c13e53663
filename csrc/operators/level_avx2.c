/* The operators in the instructions of AVX2 and FMA. */
#include "level.h"

#ifdef CAPPY_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define PART 8
#define BLOCK 4
#define WIDTH 1
#define LEVEL(name) name##_avx2
#include "vectors.h"

#include "product.inc"

#include "activation.inc"

#include "attention.inc"

#include "attention_in_bytes.inc"

#include "norm.inc"

#include "embedding.inc"

#include "linear.inc"

const cappy_level cappy_level_avx2 = {
    cappy_attend_avx2,
    cappy_attend_in_bytes_avx2,
    cappy_norm_rows_avx2,
    cappy_embed_rows_avx2,
    cappy_linear_part_avx2,
    {.multiply = cappy_multiply_avx2, .step = 4},
};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
