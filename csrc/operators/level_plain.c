/* The operators in the instructions that every processor of its kind has. (On ARM that is NEON, with everything that it
 * takes; on x86 a stopgap, for AVX2 is common since 2013.) */
#include "level.h"

#ifdef __aarch64__
#include <arm_neon.h>
#endif

#define PART 4
#define BLOCK 4
#define WIDTH 1
#define LEVEL(name) name##_plain
#include "vectors.h"

#include "product.inc"

#include "activation.inc"

#include "attention.inc"

#include "attention_in_bytes.inc"

#include "norm.inc"

#include "embedding.inc"

#include "linear.inc"

const cappy_level cappy_level_plain = {
    cappy_attend_plain,
    cappy_attend_in_bytes_plain,
    cappy_norm_rows_plain,
    cappy_embed_rows_plain,
    cappy_linear_part_plain,
    {.multiply = cappy_multiply_plain, .step = 4},
};
