/* The recurrence of lcs.c for a short pattern, which stays in two vectors: each letter of the text is compared with all
 * of the pattern's at once, and nothing is laid out in memory. */
#include "masks.h"
#include "parts.h"

#ifdef CAPPY_MASKS

#define LANES 16

CAPPY_MASKS size_t cappy_lcs_short(cappy_sequence pattern, cappy_sequence text)
{
    const uint32_t there = _bzhi_u32(UINT32_MAX, (unsigned)pattern.length);
    const __mmask16 low_there = (__mmask16)there, high_there = (__mmask16)(there >> LANES);
    const __m512i low = _mm512_maskz_loadu_epi32(low_there, pattern.ids);
    const __m512i high = _mm512_maskz_loadu_epi32(high_there, pattern.ids + (high_there ? LANES : 0));
    uint32_t row = UINT32_MAX;
    for (size_t i = 0; i < text.length; i++) {
        const __m512i letter = _mm512_set1_epi32((int)text.ids[i]);
        const uint32_t matches = (uint32_t)_mm512_mask_cmpeq_epi32_mask(low_there, low, letter) |
                                 (uint32_t)_mm512_mask_cmpeq_epi32_mask(high_there, high, letter) << LANES;
        row = (row + (row & matches)) | (row & ~matches);
    }
    return (size_t)__builtin_popcount(~row);
}

#else

size_t cappy_lcs_short(cappy_sequence pattern, cappy_sequence text)
{
    (void)pattern, (void)text;
    return 0;
}

#endif
