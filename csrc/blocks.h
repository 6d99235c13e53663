/* How texts are read: 64 bytes at a time, and a word's letters at once. A text in memory may end anywhere, so most ways
 * can only read a block that has room behind it; vectors with masks read just what is there. */
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

#ifdef CAPPY_MASKS

/* The same of the `rest` bytes that there are, at most a block of them. */
static inline CAPPY_MASKS cappy_block cappy_block_masked(const unsigned char *text, size_t rest)
{
    const __mmask64 there = _bzhi_u64(~(uint64_t)0, (unsigned)(rest < CAPPY_BLOCK ? rest : CAPPY_BLOCK));
    const __m512i bytes = _mm512_maskz_loadu_epi8(there, text);
    const __m512i from_a = _mm512_sub_epi8(_mm512_or_si512(bytes, _mm512_set1_epi8(0x20)), _mm512_set1_epi8('a'));
    const __m512i from_0 = _mm512_sub_epi8(bytes, _mm512_set1_epi8('0'));
    const uint64_t letter = _mm512_cmple_epu8_mask(from_a, _mm512_set1_epi8('z' - 'a'));
    const uint64_t digit = _mm512_cmple_epu8_mask(from_0, _mm512_set1_epi8('9' - '0'));
    return (cappy_block){letter | digit, _mm512_movepi8_mask(bytes) == 0};
}

/* cappy_key_of, without reading more than the letters. */
static inline CAPPY_MASKS cappy_key cappy_key_masked(const unsigned char *letters, size_t length)
{
    const __mmask16 there = (__mmask16)_bzhi_u32(0xFFFF, (unsigned)length);
    const __m128i lower = _mm_maskz_set1_epi8(there, 0x20);
    const __m128i key = _mm_or_si128(_mm_maskz_loadu_epi8(there, letters), lower);
    return (cappy_key){(uint64_t)_mm_cvtsi128_si64(key), (uint64_t)_mm_extract_epi64(key, 1)};
}

#endif

#endif
