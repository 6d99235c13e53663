/* Length of the longest common subsequence, 64 cells of the table at a time.
 *
 * One sequence, the pattern, is laid over the bits of a machine word; `row` has a 0 bit where the table's row steps up
 * by one, so the zeros of the last row count the answer. A letter of the other sequence whose places in the pattern are
 * `matches` takes a row to the next in one addition:  row = (row + (row & matches)) | (row & ~matches).
 * Crochemore, Iliopoulos, Pinzon and Reid 2001; Hyyro 2004, "Bit-parallel LCS-length computation revisited".
 *
 * A pattern longer than a word is done one word after the other, each over the whole text, handing the addition's
 * carries on to the next: memory grows with the lengths' sum, not their product. */
#include "parts.h"

#include <string.h>

#define WORD_BITS 64

static void mark(uint64_t *masks, const cappy_id *pattern, size_t length)
{
    for (size_t i = 0; i < length; i++)
        masks[pattern[i]] |= (uint64_t)1 << i;
}

static void unmark(uint64_t *masks, const cappy_id *pattern, size_t length)
{
    for (size_t i = 0; i < length; i++)
        masks[pattern[i]] = 0;
}

static size_t zeros(uint64_t row) { return (size_t)__builtin_popcountll(~row); }

static size_t lcs_one_word(const cappy_id *pattern, size_t pattern_length, const cappy_id *text, size_t text_length,
                           uint64_t *masks)
{
    uint64_t row = UINT64_MAX;
    mark(masks, pattern, pattern_length);
    for (size_t i = 0; i < text_length; i++) {
        const uint64_t matches = masks[text[i]];
        row = (row + (row & matches)) | (row & ~matches);
    }
    unmark(masks, pattern, pattern_length);
    return zeros(row);
}

/* One word of a longer pattern; carries[i]: what the addition for text[i] carries in, then out. */
static size_t lcs_word_of_many(const cappy_id *pattern, size_t pattern_length, const cappy_id *text,
                               size_t text_length, uint64_t *masks, unsigned char *carries)
{
    uint64_t row = UINT64_MAX;
    mark(masks, pattern, pattern_length);
    for (size_t i = 0; i < text_length; i++) {
        const uint64_t matches = masks[text[i]];
        const uint64_t partial = row + (row & matches);
        const uint64_t sum = partial + carries[i];
        carries[i] = (unsigned char)((partial < row) | (sum < partial));
        row = sum | (row & ~matches);
    }
    unmark(masks, pattern, pattern_length);
    return zeros(row);
}

size_t cappy_lcs(const cappy_id *a, size_t a_length, const cappy_id *b, size_t b_length, uint64_t *masks,
                 unsigned char *carries)
{
    /* The shorter sequence is the pattern: fewer words to go over. */
    if (a_length > b_length)
        return cappy_lcs(b, b_length, a, a_length, masks, carries);
    if (a_length <= WORD_BITS)
        return lcs_one_word(a, a_length, b, b_length, masks);
    size_t length = 0;
    memset(carries, 0, b_length);
    for (size_t start = 0; start < a_length; start += WORD_BITS) {
        const size_t rest = a_length - start;
        length += lcs_word_of_many(a + start, rest < WORD_BITS ? rest : WORD_BITS, b, b_length, masks, carries);
    }
    return length;
}
