/* How texts are read: 64 bytes at a time. A text in memory may end anywhere, so most ways can only read a block that has
 * room behind it; vectors with masks read just what is there, and cut out words four at a time. */
#ifndef CAPPY_BLOCKS_H
#define CAPPY_BLOCKS_H

#include "lexicon.h"
#include "masks.h"

#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)
#include <immintrin.h>
#endif

#define CAPPY_BLOCK 64

/* Bit i of `in_word` is set where byte i belongs to a word; `ascii`: whether all bytes are ASCII. */
typedef struct {
    uint64_t in_word;
    bool ascii;
} cappy_block;

#if defined(__x86_64__) && !defined(CAPPY_PORTABLE)

static inline cappy_block cappy_block_at(const unsigned char *text)
{
    uint64_t in_word = 0;
    __m128i all = _mm_setzero_si128();
    for (int at = 0; at < CAPPY_BLOCK; at += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(text + at));
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
    return (cappy_block){in_word, _mm_movemask_epi8(all) == 0};
}

#else

static inline cappy_block cappy_block_at(const unsigned char *text)
{
    uint64_t in_word = 0;
    unsigned char all = 0;
    for (int at = 0; at < CAPPY_BLOCK; at++) {
        const unsigned char byte = text[at], lower = byte | 0x20;
        const bool letter = lower >= 'a' && lower <= 'z', digit = byte >= '0' && byte <= '9';
        in_word |= (uint64_t)(letter || digit) << at;
        all |= byte;
    }
    return (cappy_block){in_word, all < 0x80};
}

#endif

/* The key of at most CAPPY_KEY_BYTES letters and digits, behind which as many bytes may be read. */
static inline cappy_key cappy_key_of(const unsigned char *letters, size_t length)
{
    static const unsigned char kept[2 * CAPPY_KEY_BYTES] = {255, 255, 255, 255, 255, 255, 255, 255,
                                                            255, 255, 255, 255, 255, 255, 255, 255};
    /* Upper and lower case differ in this bit, which digits have too. */
    const uint64_t lower = 0x2020202020202020u;
    cappy_key key, mask;
    memcpy(&key, letters, sizeof key);
    memcpy(&mask, kept + CAPPY_KEY_BYTES - length, sizeof mask);
    return (cappy_key){(key.low | lower) & mask.low, (key.high | lower) & mask.high};
}

/* Cuts out the words of a block, whose first and whose following bytes are set in `starts` and `ends`, and has the slots
 * fetched from memory where their keys will be looked for. The start of a word that is longer than a key is set in the
 * result, and its key is not the right one. Behind the block as many bytes may be read as a key has. */
static inline uint64_t cappy_split(const cappy_lexicon *lexicon, const unsigned char *block, uint64_t starts,
                                   uint64_t ends, cappy_key *keys)
{
    uint64_t too_long = 0;
    for (; ends; ends &= ends - 1, starts &= starts - 1, keys++) {
        const size_t start = (size_t)__builtin_ctzll(starts), length = (size_t)__builtin_ctzll(ends) - start;
        if (length > CAPPY_KEY_BYTES) {
            too_long |= (uint64_t)1 << start;
            continue;
        }
        *keys = cappy_key_of(block + start, length);
        keys->low |= lexicon->kind;
        __builtin_prefetch(&lexicon->table.slots[cappy_first_slot(&lexicon->table, *keys)]);
    }
    return too_long;
}

#ifdef CAPPY_MASKS

/* The `rest` bytes that there are, a block of them at most, and zeros. */
static inline CAPPY_MASKS __m512i cappy_bytes(const unsigned char *text, size_t rest)
{
    return _mm512_maskz_loadu_epi8(_bzhi_u64(~(uint64_t)0, (unsigned)(rest < CAPPY_BLOCK ? rest : CAPPY_BLOCK)), text);
}

static inline CAPPY_MASKS cappy_block cappy_block_masked(const unsigned char *text, size_t rest)
{
    const __m512i bytes = cappy_bytes(text, rest);
    const __m512i from_a = _mm512_sub_epi8(_mm512_or_si512(bytes, _mm512_set1_epi8(0x20)), _mm512_set1_epi8('a'));
    const __m512i from_0 = _mm512_sub_epi8(bytes, _mm512_set1_epi8('0'));
    const uint64_t letter = _mm512_cmple_epu8_mask(from_a, _mm512_set1_epi8('z' - 'a'));
    const uint64_t digit = _mm512_cmple_epu8_mask(from_0, _mm512_set1_epi8('9' - '0'));
    return (cappy_block){letter | digit, _mm512_movepi8_mask(bytes) == 0};
}

/* cappy_first_slot of four keys; only every other number counts. */
static inline CAPPY_MASKS __m512i cappy_first_slots(const cappy_table *table, __m512i keys)
{
    const __m512i factors =
        _mm512_broadcast_i32x4(_mm_set_epi64x((long long)CAPPY_HASH_HIGH, (long long)CAPPY_HASH_LOW));
    const __m512i products = _mm512_mullo_epi64(keys, factors);
    const __m512i sums = _mm512_add_epi64(products, _mm512_shuffle_epi32(products, _MM_PERM_BADC));
    return _mm512_srl_epi64(sums, _mm_cvtsi32_si128(table->shift));
}

/* cappy_split, where only the block's `rest` bytes may be read; `keys` has room for CAPPY_FOUR - 1 more. */
static inline CAPPY_MASKS uint64_t cappy_split_masked(const cappy_lexicon *lexicon, const unsigned char *block,
                                                      size_t rest, uint64_t starts, uint64_t ends, cappy_key *keys)
{
    static const unsigned char NUMBERS[CAPPY_BLOCK] = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    const __m512i numbers = _mm512_loadu_si512(NUMBERS);
    const __m512i lower = _mm512_or_si512(cappy_bytes(block, rest), _mm512_set1_epi8(0x20));
    const __m512i kind = _mm512_maskz_set1_epi64(0x55, (long long)lexicon->kind);
    /* Of each word. */
    const __m512i firsts = _mm512_maskz_compress_epi8(starts, numbers);
    const __m512i lengths = _mm512_sub_epi8(_mm512_maskz_compress_epi8(ends, numbers), firsts);
    /* Of each byte of four keys: its place in the key, and the number of the key. */
    const __m512i places = _mm512_and_si512(numbers, _mm512_set1_epi8(CAPPY_KEY_BYTES - 1));
    __m512i words = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), _mm512_set1_epi8(CAPPY_FOUR - 1));
    const size_t count = (size_t)_mm_popcnt_u64(ends);
    for (size_t i = 0; i < count; i += CAPPY_FOUR) {
        const __m512i first = _mm512_permutexvar_epi8(words, firsts);
        const __mmask64 there = _mm512_cmplt_epu8_mask(places, _mm512_permutexvar_epi8(words, lengths));
        const __m512i letters = _mm512_maskz_permutexvar_epi8(there, _mm512_add_epi8(first, places), lower);
        const __m512i four = _mm512_or_si512(letters, kind);
        _mm512_storeu_si512(keys + i, four);
        uint64_t slots[2 * CAPPY_FOUR];
        _mm512_storeu_si512(slots, cappy_first_slots(&lexicon->table, four));
        for (size_t k = 0; k < CAPPY_FOUR; k++)
            __builtin_prefetch(&lexicon->table.slots[slots[2 * k]]);
        words = _mm512_add_epi8(words, _mm512_set1_epi8(CAPPY_FOUR));
    }
    const uint64_t too_long = _mm512_cmpgt_epu8_mask(lengths, _mm512_set1_epi8(CAPPY_KEY_BYTES));
    return _pdep_u64(_bzhi_u64(too_long, (unsigned)count), starts);
}

#endif

#endif
