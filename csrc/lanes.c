/* Several patterns of one machine word each against one text: the recurrence of lcs.c in the lanes of a vector. For a
 * matrix, where every text meets every other. */
#include "parts.h"

static void set(cappy_lanes *masks, const cappy_sequence *patterns, size_t count, bool lay)
{
    for (size_t k = 0; k < count; k++)
        for (size_t i = 0; i < patterns[k].length && patterns[k].length <= CAPPY_WORD_BITS; i++)
            masks[patterns[k].ids[i]][k] = lay ? masks[patterns[k].ids[i]][k] | (uint64_t)1 << i : 0;
}

void cappy_lanes_lay(cappy_lanes *masks, const cappy_sequence *patterns, size_t count)
{
    set(masks, patterns, count, true);
}

void cappy_lanes_lift(cappy_lanes *masks, const cappy_sequence *patterns, size_t count)
{
    set(masks, patterns, count, false);
}

static inline __attribute__((always_inline)) void lcs(const cappy_lanes *masks, cappy_sequence text, size_t *lengths)
{
    cappy_lanes rows = ~(cappy_lanes){0};
    for (size_t i = 0; i < text.length; i++) {
        const cappy_lanes matches = masks[text.ids[i]];
        rows = (rows + (rows & matches)) | (rows & ~matches);
    }
    for (int k = 0; k < CAPPY_MATRIX_ROWS; k++)
        lengths[k] = (size_t)__builtin_popcountll(~rows[k]);
}

/* The same code for each kind of processor; the bits are the same too. */
#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
__attribute__((target("avx512f,popcnt"))) static void lcs_avx512(const cappy_lanes *masks, cappy_sequence text,
                                                                 size_t *lengths)
{
    lcs(masks, text, lengths);
}

__attribute__((target("avx2,popcnt"))) static void lcs_avx2(const cappy_lanes *masks, cappy_sequence text,
                                                            size_t *lengths)
{
    lcs(masks, text, lengths);
}
#endif

void cappy_lanes_lcs(const cappy_lanes *masks, cappy_sequence text, size_t lengths[CAPPY_MATRIX_ROWS])
{
#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
#ifndef CAPPY_NO_AVX512
    if (__builtin_cpu_supports("avx512f"))
        lcs_avx512(masks, text, lengths);
    else
#endif
    if (__builtin_cpu_supports("avx2"))
        lcs_avx2(masks, text, lengths);
    else
#endif
        lcs(masks, text, lengths);
}
