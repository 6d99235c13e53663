/* Texts to words. Words are what rouge-score finds: runs of [a-z0-9] in the lower-cased text. */
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "lexicon.h"

#define BLOCK 64

/* Two characters outside ASCII have an ASCII letter in their lower case, and need the text rewritten:
 * U+0130 (dotted capital I) becomes "i" and a combining dot, which ends the word; */
static bool is_dotted_i(const unsigned char *at, const unsigned char *end)
{
    return end - at >= 2 && at[0] == 0xC4 && at[1] == 0xB0;
}

/* U+212A (the Kelvin sign) becomes "k". */
static bool is_kelvin(const unsigned char *at, const unsigned char *end)
{
    return end - at >= 3 && at[0] == 0xE2 && at[1] == 0x84 && at[2] == 0xAA;
}

static bool needs_rewriting(const unsigned char *text, size_t length)
{
    const unsigned char *end = text + length;
    for (const unsigned char *at = text; (at = memchr(at, 0xC4, (size_t)(end - at))) != NULL; at++)
        if (is_dotted_i(at, end))
            return true;
    for (const unsigned char *at = text; (at = memchr(at, 0xE2, (size_t)(end - at))) != NULL; at++)
        if (is_kelvin(at, end))
            return true;
    return false;
}

/* Copies the text with the two characters' lower case for them; returns its length, never a greater one. */
static size_t rewrite(const unsigned char *text, size_t length, unsigned char *copy)
{
    const unsigned char *end = text + length;
    size_t used = 0;
    while (text < end) {
        if (is_dotted_i(text, end)) {
            copy[used++] = 'i';
            copy[used++] = ' ';
            text += 2;
        } else if (is_kelvin(text, end)) {
            copy[used++] = 'k';
            text += 3;
        } else {
            copy[used++] = *text++;
        }
    }
    return used;
}

/* Bit i of `in_word` is set where byte i belongs to a word, `ascii` where all bytes are ASCII. */
typedef struct {
    uint64_t in_word;
    bool ascii;
} block_bits;

#if defined(__SSE2__) && !defined(CAPPY_PORTABLE)
static inline block_bits look_at(const unsigned char *block)
{
    uint64_t in_word = 0;
    __m128i all = _mm_setzero_si128();
    for (int at = 0; at < BLOCK; at += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(block + at));
        /* The bit that tells a letter's cases apart. */
        const __m128i lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
        /* x - first is at most n, unsigned, just where it is its own minimum with n. */
        const __m128i from_a = _mm_sub_epi8(lower, _mm_set1_epi8('a'));
        const __m128i from_0 = _mm_sub_epi8(bytes, _mm_set1_epi8('0'));
        const __m128i letter = _mm_cmpeq_epi8(from_a, _mm_min_epu8(from_a, _mm_set1_epi8('z' - 'a')));
        const __m128i digit = _mm_cmpeq_epi8(from_0, _mm_min_epu8(from_0, _mm_set1_epi8('9' - '0')));
        in_word |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_or_si128(letter, digit)) << at;
        all = _mm_or_si128(all, bytes);
    }
    return (block_bits){in_word, _mm_movemask_epi8(all) == 0};
}
#else
static inline block_bits look_at(const unsigned char *block)
{
    uint64_t in_word = 0;
    unsigned char all = 0;
    for (int at = 0; at < BLOCK; at++) {
        const unsigned char byte = block[at], lower = byte | 0x20;
        const bool letter = lower >= 'a' && lower <= 'z', digit = byte >= '0' && byte <= '9';
        in_word |= (uint64_t)(letter || digit) << at;
        all |= byte;
    }
    return (block_bits){in_word, all < 0x80};
}
#endif

/* The word's id; 0 if there is no memory. Room for it has been reserved. Reads CAPPY_KEY_BYTES. */
static inline cappy_id word_id(cappy_lexicon *lexicon, const unsigned char *letters, size_t length)
{
    if (length <= CAPPY_KEY_BYTES) {
        cappy_key key = cappy_key_of(letters, length);
        key.low |= lexicon->kind;
        const cappy_id id = cappy_table_id(&lexicon->table, key);
        if (id)
            return id;
    }
    return cappy_lexicon_add(lexicon, letters, length);
}

/* Ids of the text's words into `ids`, and how many into `count`. */
static cappy_status read_text(cappy_lexicon *lexicon, const unsigned char *text, size_t length, bool may_need_rewriting,
                              cappy_id *ids, size_t *count)
{
    /* The end of the text, with zeros behind it, which end the last word and may be read over. */
    unsigned char end[2 * BLOCK + CAPPY_KEY_BYTES] = {0};
    const size_t end_start = length < BLOCK + CAPPY_KEY_BYTES ? 0 : (length - CAPPY_KEY_BYTES) / BLOCK * BLOCK;
    memcpy(end, text + end_start, length - end_start);

    cappy_id *next = ids;
    const unsigned char *open = NULL; /* the word that goes on into the block */
    size_t open_length = 0;
    for (size_t base = 0; base <= length; base += BLOCK) {
        const unsigned char *block = base < end_start ? text + base : end + (base - end_start);
        const block_bits bits = look_at(block);
        if (!bits.ascii && may_need_rewriting) {
            may_need_rewriting = false;
            if (needs_rewriting(text + base, length - base)) {
                if (!cappy_buffer_reserve(&lexicon->text, length + CAPPY_KEY_BYTES, 1))
                    return CAPPY_NO_MEMORY;
                unsigned char *copy = lexicon->text.bytes;
                return read_text(lexicon, copy, rewrite(text, length, copy), false, ids, count);
            }
        }
        const cappy_status status = cappy_lexicon_reserve(lexicon, BLOCK / 2, BLOCK + open_length);
        if (status != CAPPY_OK)
            return status;
        const uint64_t behind = bits.in_word << 1 | (open != NULL); /* bytes that follow one of a word */
        uint64_t starts = bits.in_word & ~behind, ends = behind & ~bits.in_word;
        if (open && ends) {
            if (!(*next++ = word_id(lexicon, open, open_length + (size_t)__builtin_ctzll(ends))))
                return CAPPY_NO_MEMORY;
            ends &= ends - 1;
            open = NULL;
            open_length = 0;
        }
        for (; ends; ends &= ends - 1, starts &= starts - 1) {
            const size_t start = (size_t)__builtin_ctzll(starts);
            if (!(*next++ = word_id(lexicon, block + start, (size_t)__builtin_ctzll(ends) - start)))
                return CAPPY_NO_MEMORY;
        }
        /* No branches: whether a block ends in a word is anyone's guess. */
        const size_t last_start = (size_t)__builtin_ctzll(starts | (uint64_t)1 << (BLOCK - 1));
        open_length = starts ? BLOCK - last_start : open_length + (open ? BLOCK : 0);
        open = starts ? block + last_start : open;
    }
    *count = (size_t)(next - ids);
    return CAPPY_OK;
}

/* Where a text is looked for among those read before. */
#define MEMORY 256

cappy_status cappy_read(cappy_lexicon *lexicon, const cappy_text *texts, size_t count, cappy_id *ids,
                        cappy_sequence *sequences)
{
    size_t memory[MEMORY] = {0}; /* one more than the index of a text */
    for (size_t i = 0; i < count; i++) {
        const cappy_text text = texts[i];
        /* Addresses differ least in their lowest bits. */
        size_t *remembered = &memory[(uintptr_t)text.bytes / 16 % MEMORY];
        const size_t same = *remembered - 1;
        *remembered = i + 1;
        if (same < i && texts[same].bytes == text.bytes && texts[same].length == text.length) {
            sequences[i] = sequences[same];
            continue;
        }
        sequences[i].ids = ids;
        const cappy_status status =
            read_text(lexicon, (const unsigned char *)text.bytes, text.length, true, ids, &sequences[i].length);
        if (status != CAPPY_OK)
            return status;
        ids += sequences[i].length;
    }
    return CAPPY_OK;
}
