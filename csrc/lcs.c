/* Length of the longest common subsequence, 64 cells of the table at a time.
 *
 * One sequence, the pattern, is laid over the bits of a machine word; `row` has a 0 bit where the table's row steps up
 * by one, so the zeros of the last row count the answer. A letter of the other sequence whose places in the pattern are
 * `matches` takes a row to the next in one addition:  row = (row + (row & matches)) | (row & ~matches).
 * Crochemore, Iliopoulos, Pinzon and Reid 2001; Hyyro 2004, "Bit-parallel LCS-length computation revisited".
 *
 * A longer pattern takes several words, and the addition carries from one to the next. Beyond STRIP_WORDS of them, both
 * sequences are first freed of their common ends, which are in the answer, and of what the other hasn't, which can't be.
 * Then the pattern is done in strips, each over the whole text, that hand their carries on: memory grows with the
 * lengths' sum, not their product. */
#include "parts.h"

#include <string.h>

#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
#include <immintrin.h>
#endif

#define WORD_BITS CAPPY_WORD_BITS
#define STRIP_WORDS CAPPY_STRIP_WORDS
#define STRIP_BITS (STRIP_WORDS * WORD_BITS)

static size_t words_of(size_t length) { return (length + WORD_BITS - 1) / WORD_BITS; }

static size_t zeros(uint64_t row) { return (size_t)__builtin_popcountll(~row); }

/* The number's words of a strip. Number 0 is that of all letters which the pattern hasn't: it has no places. */
static inline uint64_t *places_of(uint64_t *strip, uint64_t number) { return strip + number * STRIP_WORDS; }

/* A pattern of one word has its places in the masks themselves. One of several has the letters' numbers there, each its
 * first place counted from 1, and under the numbers the places. */
static void lay_strip(uint64_t *strip, uint64_t *masks, cappy_sequence pattern)
{
    for (size_t i = 0; i < pattern.length; i++) {
        uint64_t *number = &masks[pattern.ids[i]];
        *number = *number ? *number : i + 1;
        places_of(strip, *number)[i / WORD_BITS] |= (uint64_t)1 << i % WORD_BITS;
    }
}

static void lift_strip(uint64_t *strip, const uint64_t *masks, cappy_sequence pattern)
{
    for (size_t i = 0; i < pattern.length; i++)
        places_of(strip, masks[pattern.ids[i]])[i / WORD_BITS] = 0;
}

void cappy_lay(cappy_space *space, cappy_sequence pattern)
{
    const cappy_sequence old = space->pattern;
    uint64_t *masks = space->masks.bytes;
    if (old.ids == pattern.ids && old.length == pattern.length)
        return;
    if (old.length > WORD_BITS)
        lift_strip(space->strip.bytes, masks, old);
    for (size_t i = 0; i < old.length; i++)
        masks[old.ids[i]] = 0;
    if (pattern.length > WORD_BITS)
        lay_strip(space->strip.bytes, masks, pattern);
    for (size_t i = 0; i < pattern.length && pattern.length <= WORD_BITS; i++)
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

/* One strip over the text. Its words are a constant for the compiler, and so is whether the text's letters are `numbers`
 * already and whether carries[i] is what the addition for letter i carries in, then out. */
static inline __attribute__((always_inline)) size_t run_strip(uint64_t *strip, size_t words, cappy_sequence text,
                                                              const uint64_t *numbers, unsigned char *carries)
{
    uint64_t rows[STRIP_WORDS];
    size_t length = 0;
    for (size_t k = 0; k < words; k++)
        rows[k] = UINT64_MAX;
    for (size_t i = 0; i < text.length; i++) {
        const uint64_t *matches = places_of(strip, numbers ? numbers[text.ids[i]] : text.ids[i]);
        uint64_t matched[STRIP_WORDS], rest[STRIP_WORDS];
        for (size_t k = 0; k < words; k++) {
            matched[k] = rows[k] & matches[k];
            rest[k] = rows[k] & ~matches[k];
        }
        unsigned char carry = carries ? carries[i] : 0;
        for (size_t k = 0; k < words; k++)
            rows[k] = add(rows[k], matched[k], &carry) | rest[k];
        if (carries)
            carries[i] = carry;
    }
    for (size_t k = 0; k < words; k++)
        length += zeros(rows[k]);
    return length;
}

static size_t lcs_one_strip(cappy_space *space, cappy_sequence pattern, cappy_sequence text)
{
    cappy_lay(space, pattern);
    uint64_t *strip = space->strip.bytes;
    const uint64_t *numbers = space->masks.bytes;
    switch (words_of(pattern.length)) {
    case 2:
        return run_strip(strip, 2, text, numbers, NULL);
    case 3:
        return run_strip(strip, 3, text, numbers, NULL);
    default:
        return run_strip(strip, 4, text, numbers, NULL);
    }
}

/* Each letter of either sequence that the other has too, as its number: the place, counted from 1, of its last in the
 * shorter one. */
static void keep_common(cappy_space *space, cappy_sequence shorter, cappy_sequence longer, cappy_sequence common[2])
{
    uint64_t *numbers = space->masks.bytes;
    unsigned char *in_longer = space->carries.bytes; /* [number] */
    cappy_id *kept[2] = {space->common[0].bytes, space->common[1].bytes};
    size_t count[2] = {0, 0};
    for (size_t i = 0; i < shorter.length; i++)
        numbers[shorter.ids[i]] = i + 1;
    memset(in_longer, 0, shorter.length + 1);
    for (size_t i = 0; i < longer.length; i++) {
        const uint64_t number = numbers[longer.ids[i]];
        kept[1][count[1]] = (cappy_id)number;
        count[1] += number != 0;
        in_longer[number] = 1;
    }
    for (size_t i = 0; i < shorter.length; i++) {
        const uint64_t number = numbers[shorter.ids[i]];
        kept[0][count[0]] = (cappy_id)number;
        count[0] += in_longer[number];
    }
    for (size_t i = 0; i < shorter.length; i++)
        numbers[shorter.ids[i]] = 0;
    for (int k = 0; k < 2; k++)
        common[k] = (cappy_sequence){kept[k], count[k]};
}

static size_t lcs_strips(cappy_space *space, cappy_sequence pattern, cappy_sequence text)
{
    uint64_t *strip = space->strip.bytes;
    unsigned char *carries = space->carries.bytes;
    size_t length = 0;
    memset(carries, 0, text.length);
    for (size_t start = 0; start < pattern.length; start += STRIP_BITS) {
        const cappy_id *letters = pattern.ids + start;
        const size_t count = pattern.length - start < STRIP_BITS ? pattern.length - start : STRIP_BITS;
        if (!cappy_goes_on(space, words_of(count) * text.length))
            return 0;
        for (size_t i = 0; i < count; i++)
            places_of(strip, letters[i])[i / WORD_BITS] |= (uint64_t)1 << i % WORD_BITS;
        switch (words_of(count)) {
        case 1:
            length += run_strip(strip, 1, text, NULL, carries);
            break;
        case 2:
            length += run_strip(strip, 2, text, NULL, carries);
            break;
        case 3:
            length += run_strip(strip, 3, text, NULL, carries);
            break;
        default:
            length += run_strip(strip, 4, text, NULL, carries);
        }
        for (size_t i = 0; i < count; i++)
            places_of(strip, letters[i])[i / WORD_BITS] = 0;
    }
    return length;
}

/* Takes off what both sequences begin and end with; returns how much that is of each. */
static size_t strip_ends(cappy_sequence *shorter, cappy_sequence *longer)
{
    const size_t most = shorter->length;
    size_t start = 0, end = 0;
    while (start < most && shorter->ids[start] == longer->ids[start])
        start++;
    while (end < most - start && shorter->ids[most - 1 - end] == longer->ids[longer->length - 1 - end])
        end++;
    *shorter = (cappy_sequence){shorter->ids + start, shorter->length - start - end};
    *longer = (cappy_sequence){longer->ids + start, longer->length - start - end};
    return start + end;
}

static size_t lcs_long(cappy_space *space, cappy_sequence shorter, cappy_sequence longer)
{
    const size_t ends = strip_ends(&shorter, &longer);
    cappy_sequence common[2];
    cappy_lay(space, (cappy_sequence){0});
    /* keep_common writes one letter behind those that it keeps. */
    if (!cappy_reserve(space, &space->strip, shorter.length + 1, STRIP_WORDS * sizeof(uint64_t)) ||
        !cappy_reserve(space, &space->common[0], shorter.length + 1, sizeof(cappy_id)) ||
        !cappy_reserve(space, &space->common[1], longer.length + 1, sizeof(cappy_id)) ||
        !cappy_reserve(space, &space->carries, longer.length + 1, 1))
        return 0;
    keep_common(space, shorter, longer, common);
    const bool swapped = common[0].length > common[1].length;
    return ends + lcs_strips(space, common[swapped], common[!swapped]);
}

size_t cappy_lcs(cappy_space *space, cappy_sequence prediction, cappy_sequence reference)
{
    if (space->has_masks && reference.length <= CAPPY_SHORT_LENGTH)
        return cappy_lcs_short(reference, prediction);
    if (space->has_masks && prediction.length <= CAPPY_SHORT_LENGTH)
        return cappy_lcs_short(prediction, reference);
    if (reference.length <= WORD_BITS)
        return lcs_one_word(space, reference, prediction);
    if (prediction.length <= WORD_BITS)
        return lcs_one_word(space, prediction, reference);
    /* Neighbours often share the reference, which then stays laid. */
    if (reference.length <= STRIP_BITS)
        return lcs_one_strip(space, reference, prediction);
    if (prediction.length <= STRIP_BITS)
        return lcs_one_strip(space, prediction, reference);
    return prediction.length <= reference.length ? lcs_long(space, prediction, reference)
                                                 : lcs_long(space, reference, prediction);
}
