/* The operators at each level of instructions. */
#ifndef CAPPY_LEVEL_H
#define CAPPY_LEVEL_H

#include "operators.h"

#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
#define CAPPY_X86
#if defined(__linux__) && !defined(CAPPY_NO_AVX512)
#define CAPPY_AMX
#endif
#endif

typedef struct {
    cappy_attend *attend;
    cappy_norm_rows *norm_rows;
    cappy_linear_part *linear_part;
} cappy_level;

extern const cappy_level cappy_level_plain, cappy_level_avx2, cappy_level_avx512;

/* By AMX: inner % 64 == 0 and columns in whole 32s. `scratch` holds 32 rows of codes. */
void cappy_linear_tiles(const cappy_linear *task, size_t row, size_t end_row, size_t column, size_t end_column,
                        uint8_t *scratch);
bool cappy_has_tiles(void);

#endif
