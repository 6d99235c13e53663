/* Several patterns of one machine word each against one text: the recurrence of lcs.c in the lanes of vectors. For a
 * matrix, where every text meets every other. */
#include <string.h>

#include "parts.h"

#define LANES 4
#define VECTORS (CAPPY_MATRIX_ROWS / LANES)

typedef uint64_t lanes __attribute__((vector_size(LANES * 8), may_alias));
typedef int64_t signed_lanes __attribute__((vector_size(LANES * 8)));
typedef double lane_doubles __attribute__((vector_size(LANES * 8)));

static void set(uint64_t *masks, const cappy_sequence *patterns, size_t count, bool lay)
{
    for (size_t k = 0; k < count; k++)
        for (size_t i = 0; i < patterns[k].length && patterns[k].length <= CAPPY_WORD_BITS; i++) {
            uint64_t *mask = &masks[(size_t)patterns[k].ids[i] * CAPPY_MATRIX_ROWS + k];
            *mask = lay ? *mask | (uint64_t)1 << i : 0;
        }
}

void cappy_lanes_lay(uint64_t *masks, const cappy_sequence *patterns, size_t count)
{
    set(masks, patterns, count, true);
}

void cappy_lanes_lift(uint64_t *masks, const cappy_sequence *patterns, size_t count)
{
    set(masks, patterns, count, false);
}

static inline __attribute__((always_inline)) void score(const uint64_t *masks, const double *pattern_lengths,
                                                        cappy_sequence text, double *fmeasures)
{
    lanes rows[VECTORS];
    for (int v = 0; v < VECTORS; v++)
        rows[v] = ~(lanes){0};
    for (size_t i = 0; i < text.length; i++) {
        const lanes *matches = (const lanes *)(masks + (size_t)text.ids[i] * CAPPY_MATRIX_ROWS);
        for (int v = 0; v < VECTORS; v++)
            rows[v] = (rows[v] + (rows[v] & matches[v])) | (rows[v] & ~matches[v]);
    }
    for (int v = 0; v < VECTORS; v++) {
        /* The zeros of each lane: sums of neighbouring bits, then of pairs of bits, and so on. */
        lanes ones = ~rows[v];
        ones -= ones >> 1 & 0x5555555555555555u;
        ones = (ones & 0x3333333333333333u) + (ones >> 2 & 0x3333333333333333u);
        ones = (ones + (ones >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
        ones += ones >> 8;
        ones += ones >> 16;
        ones += ones >> 32;
        const lane_doubles common = __builtin_convertvector((signed_lanes)(ones & 0x7F), lane_doubles);
        lane_doubles lengths;
        memcpy(&lengths, pattern_lengths + v * LANES, sizeof lengths);
        const lane_doubles precision = common / lengths, recall = common / (double)text.length;
        const lane_doubles fmeasure = 2 * precision * recall / (precision + recall);
        /* Where nothing is in common, 0 instead of what a division by 0 gives. */
        const signed_lanes kept = (signed_lanes)fmeasure & (common > 0);
        memcpy(fmeasures + v * LANES, &kept, sizeof kept);
    }
}

/* The same code for other instructions; the bits are the same too. */
#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
__attribute__((target("avx2"))) static void score_avx2(const uint64_t *masks, const double *pattern_lengths,
                                                       cappy_sequence text, double *fmeasures)
{
    score(masks, pattern_lengths, text, fmeasures);
}
#endif

void cappy_lanes_score(const uint64_t *masks, const double pattern_lengths[CAPPY_MATRIX_ROWS], cappy_sequence text,
                       double fmeasures[CAPPY_MATRIX_ROWS])
{
#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
    if (__builtin_cpu_supports("avx2"))
        score_avx2(masks, pattern_lengths, text, fmeasures);
    else
#endif
        score(masks, pattern_lengths, text, fmeasures);
}
