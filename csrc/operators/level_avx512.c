/* The operators in the instructions of AVX-512. */
#include "level.h"

#ifdef CAPPY_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2")
#endif
#define PART 16
#define BLOCK 8
#define WIDTH 2
#define LEVEL(name) name##_avx512
#include "vectors.h"

#include "product.inc"

#include "activation.inc"

#include "attention.inc"

#include "attention_in_bytes.inc"

#include "norm.inc"

#include "embedding.inc"

#include "linear.inc"

const cappy_level cappy_level_avx512 = {
    cappy_attend_avx512,
    cappy_attend_in_bytes_avx512,
    cappy_norm_rows_avx512,
    cappy_embed_rows_avx512,
    cappy_linear_part_avx512,
    {.multiply = cappy_multiply_avx512, .step = 4},
};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
