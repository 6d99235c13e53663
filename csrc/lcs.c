/* Length of the longest common subsequence, 64 cells of the table at a time.
 *
 * One sequence, the pattern, is laid over the bits of a machine word; `row` has a 0 bit where the table's row steps up
 * by one, so the zeros of the last row count the answer. A letter of the other sequence whose places in the pattern are
 * `matches` takes a row to the next in one addition:  row = (row + (row & matches)) | (row & ~matches).
 * Crochemore, Iliopoulos, Pinzon and Reid 2001; Hyyro 2004, "Bit-parallel LCS-length computation revisited".
 *
 * A pattern longer than a word is first freed of what the other sequence hasn't, and the other way round: neither can be
 * in the answer. The rest is done in strips of some words, each over the whole text, which hand the addition's carries
 * on to the next: memory grows with the lengths' sum, not their product. */
#include "parts.h"

#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
#include <immintrin.h>
#endif

#define WORD_BITS CAPPY_WORD_BITS
#define STRIP_WORDS 4

static size_t zeros(uint64_t row) { return (size_t)__builtin_popcountll(~row); }

void cappy_lay(cappy_space *space, cappy_sequence pattern)
{
    const cappy_sequence old = space->pattern;
    uint64_t *masks = space->masks.bytes;
    if (old.ids == pattern.ids && old.length == pattern.length)
        return;
    for (size_t i = 0; i < old.length; i++)
        masks[old.ids[i]] = 0;
    for (size_t i = 0; i < pattern.length; i++)
        masks[pattern.ids[i]] |= (uint64_t)1 << i;
    space->pattern = pattern;
}

static size_t lcs_one_word(cappy_space *space, cappy_sequence pattern, cappy_sequence text)
{
    const uint64_t *masks = space->masks.bytes;
    uint64_t row = UINT64_MAX;
    cappy_lay(space, pattern);
    for (size_t i = 0; i < text.length; i++) {
        const uint64_t matches = masks[text.ids[i]];
        row = (row + (row & matches)) | (row & ~matches);
    }
    return zeros(row);
}

/* Each letter of either sequence that the other has too, into `space->common`, numbered from 1. */
static void keep_common(cappy_space *space, cappy_sequence shorter, cappy_sequence longer, cappy_sequence common[2])
{
    const uint64_t in_longer = (uint64_t)1 << 32; /* beside a number */
    uint64_t *numbers = space->masks.bytes;
    cappy_id *kept[2] = {space->common[0].bytes, space->common[1].bytes};
    uint64_t last = 0;
    cappy_lay(space, (cappy_sequence){0});
    for (size_t i = 0; i < shorter.length; i++)
        if (numbers[shorter.ids[i]] == 0)
            numbers[shorter.ids[i]] = ++last;
    for (size_t i = 0; i < longer.length; i++) {
        uint64_t *number = &numbers[longer.ids[i]];
        *kept[1] = (cappy_id)*number;
        kept[1] += *number != 0;
        *number |= *number ? in_longer : 0;
    }
    for (size_t i = 0; i < shorter.length; i++) {
        const uint64_t number = numbers[shorter.ids[i]];
        *kept[0] = (cappy_id)number;
        kept[0] += number > in_longer;
    }
    for (size_t i = 0; i < shorter.length; i++)
        numbers[shorter.ids[i]] = 0;
    for (int k = 0; k < 2; k++) {
        const cappy_id *start = space->common[k].bytes;
        common[k] = (cappy_sequence){start, (size_t)(kept[k] - start)};
    }
}

/* a + b + *carry, and the carry out of it. */
static inline uint64_t add(uint64_t a, uint64_t b, unsigned char *carry)
{
#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
    unsigned long long sum;
    *carry = _addcarry_u64(*carry, a, b, &sum);
#else
    const uint64_t partial = a + b, sum = partial + *carry;
    *carry = (unsigned char)((partial < a) | (sum < partial));
#endif
    return sum;
}

/* One strip of `words` words, a constant for the compiler. carries[i]: what the addition for text.ids[i] carries in,
 * then out. */
static inline __attribute__((always_inline)) size_t lcs_strip(const uint64_t *strip, size_t words, cappy_sequence text,
                                                              unsigned char *carries)
{
    uint64_t rows[STRIP_WORDS];
    size_t length = 0;
    for (size_t k = 0; k < words; k++)
        rows[k] = UINT64_MAX;
    for (size_t i = 0; i < text.length; i++) {
        const uint64_t *matches = strip + text.ids[i] * words;
        uint64_t matched[STRIP_WORDS], rest[STRIP_WORDS];
        for (size_t k = 0; k < words; k++) {
            matched[k] = rows[k] & matches[k];
            rest[k] = rows[k] & ~matches[k];
        }
        unsigned char carry = carries[i];
        for (size_t k = 0; k < words; k++)
            rows[k] = add(rows[k], matched[k], &carry) | rest[k];
        carries[i] = carry;
    }
    for (size_t k = 0; k < words; k++)
        length += zeros(rows[k]);
    return length;
}

static size_t lcs_strips(cappy_space *space, cappy_sequence pattern, cappy_sequence text)
{
    uint64_t *strip = space->strip.bytes;
    unsigned char *carries = space->carries.bytes;
    size_t length = 0;
    for (size_t i = 0; i < text.length; i++)
        carries[i] = 0;
    for (size_t start = 0; start < pattern.length; start += STRIP_WORDS * WORD_BITS) {
        const size_t rest = pattern.length - start;
        const size_t words = rest <= WORD_BITS ? 1 : rest <= 2 * WORD_BITS ? 2 : STRIP_WORDS;
        const size_t count = rest < words * WORD_BITS ? rest : words * WORD_BITS;
        if (!cappy_goes_on(space, words * text.length))
            return 0;
        for (size_t i = 0; i < count; i++)
            strip[pattern.ids[start + i] * words + i / WORD_BITS] |= (uint64_t)1 << i % WORD_BITS;
        length += words == 1   ? lcs_strip(strip, 1, text, carries)
                  : words == 2 ? lcs_strip(strip, 2, text, carries)
                               : lcs_strip(strip, STRIP_WORDS, text, carries);
        for (size_t i = 0; i < count; i++)
            strip[pattern.ids[start + i] * words + i / WORD_BITS] = 0;
    }
    return length;
}

static bool reserve_strips(cappy_space *space, size_t shorter, size_t longer)
{
    /* keep_common writes one element behind what it keeps. */
    if (cappy_buffer_reserve(&space->common[0], shorter + 1, sizeof(cappy_id)) &&
        cappy_buffer_reserve(&space->common[1], longer + 1, sizeof(cappy_id)) &&
        cappy_buffer_reserve(&space->strip, shorter + 1, STRIP_WORDS * sizeof(uint64_t)) &&
        cappy_buffer_reserve(&space->carries, longer, 1))
        return true;
    space->status = CAPPY_NO_MEMORY;
    return false;
}

size_t cappy_lcs(cappy_space *space, cappy_sequence prediction, cappy_sequence reference)
{
    if (reference.length <= WORD_BITS)
        return lcs_one_word(space, reference, prediction);
    if (prediction.length <= WORD_BITS)
        return lcs_one_word(space, prediction, reference);
    const bool first = prediction.length <= reference.length;
    const cappy_sequence shorter = first ? prediction : reference, longer = first ? reference : prediction;
    cappy_sequence common[2];
    if (!reserve_strips(space, shorter.length, longer.length))
        return 0;
    keep_common(space, shorter, longer, common);
    const bool swapped = common[0].length > common[1].length;
    return lcs_strips(space, common[swapped], common[!swapped]);
}
