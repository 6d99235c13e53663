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
    cappy_attend *attend, *attend_in_bytes;
    cappy_norm_rows *norm_rows;
    cappy_embed_rows *embed_rows;
    cappy_linear_part *linear_part;
    cappy_unit unit;
} cappy_level;

static inline void cappy_begin(const cappy_unit *unit, size_t rows)
{
    if (unit->begin)
        unit->begin(rows);
}

static inline void cappy_end(const cappy_unit *unit)
{
    if (unit->end)
        unit->end();
}

extern const cappy_level cappy_level_plain, cappy_level_avx2, cappy_level_avx512;

/* The unit of a processor with AMX, whose level is that of AVX-512. */
extern const cappy_unit cappy_unit_amx;
bool cappy_has_tiles(void);

#endif
