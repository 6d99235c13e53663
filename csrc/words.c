/* Texts to words. Words are what rouge-score finds: runs of [a-z0-9] in the lower-cased text. */
#include <string.h>

#include "blocks.h"

#define BLOCK CAPPY_BLOCK

#ifdef CAPPY_MASKS
#define KEY_OF(letters, length, masked) ((masked) ? cappy_key_masked(letters, length) : cappy_key_of(letters, length))
#define BLOCK_AT(text, rest, masked) ((masked) ? cappy_block_masked(text, rest) : cappy_block_at(text))
#else
#define KEY_OF(letters, length, masked) ((void)(masked), cappy_key_of(letters, length))
#define BLOCK_AT(text, rest, masked) ((void)(masked), cappy_block_at(text))
#endif

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

/* The word's id; 0 if there is no memory. Room for it has been reserved. */
static inline __attribute__((always_inline)) cappy_id word_id(cappy_lexicon *lexicon, const unsigned char *letters,
                                                              size_t length, bool masked)
{
    if (length > CAPPY_KEY_BYTES)
        return cappy_lexicon_long_word(lexicon, letters, length);
    cappy_key key = KEY_OF(letters, length, masked);
    key.low |= lexicon->kind;
    const cappy_id id = cappy_table_id(&lexicon->table, key);
    return id ? id : cappy_lexicon_add(lexicon, key, length);
}

/* Ids of the text's words into `ids`, and how many into `count`. `masked`, a constant for the compiler, is the way of
 * reading. If `rewriting` is true at first, the text may have characters that need it; if it still is at the end, the
 * text has some, and nothing else of the result holds. */
static inline __attribute__((always_inline)) cappy_status read_text(cappy_lexicon *lexicon, const unsigned char *text,
                                                                    size_t length, bool masked, bool *rewriting,
                                                                    cappy_id *ids, size_t *count)
{
    /* The end of the text, with zeros behind it, which end the last word and may be read over. */
    unsigned char end[2 * BLOCK + CAPPY_KEY_BYTES];
    size_t end_start = SIZE_MAX;
    if (!masked) {
        end_start = length < BLOCK + CAPPY_KEY_BYTES ? 0 : (length - CAPPY_KEY_BYTES) / BLOCK * BLOCK;
        memset(end, 0, sizeof end);
        memcpy(end, text + end_start, length - end_start);
    }
    bool ascii = true;
    cappy_id *next = ids;
    const unsigned char *open = NULL; /* the word that goes on into the block */
    size_t open_length = 0;
    for (size_t base = 0; base <= length; base += BLOCK) {
        const unsigned char *block = base < end_start ? text + base : end + (base - end_start);
        const cappy_block bits = BLOCK_AT(block, length - base, masked);
        if (!bits.ascii && ascii) {
            ascii = false;
            if (*rewriting && needs_rewriting(text + base, length - base))
                return CAPPY_OK;
        }
        const cappy_status status = cappy_lexicon_reserve(lexicon, BLOCK / 2, BLOCK + open_length);
        if (status != CAPPY_OK)
            return status;
        const uint64_t behind = bits.in_word << 1 | (open != NULL); /* bytes that follow one of a word */
        uint64_t starts = bits.in_word & ~behind, ends = behind & ~bits.in_word;
        if (open && ends) {
            if (!(*next++ = word_id(lexicon, open, open_length + (size_t)__builtin_ctzll(ends), masked)))
                return CAPPY_NO_MEMORY;
            ends &= ends - 1;
            open = NULL;
            open_length = 0;
        }
        for (; ends; ends &= ends - 1, starts &= starts - 1) {
            const size_t start = (size_t)__builtin_ctzll(starts);
            if (!(*next++ = word_id(lexicon, block + start, (size_t)__builtin_ctzll(ends) - start, masked)))
                return CAPPY_NO_MEMORY;
        }
        /* No branches: whether a block ends in a word is anyone's guess. */
        const size_t last_start = (size_t)__builtin_ctzll(starts | (uint64_t)1 << (BLOCK - 1));
        open_length = starts ? BLOCK - last_start : open_length + (open ? BLOCK : 0);
        open = starts ? block + last_start : open;
    }
    *rewriting = false;
    *count = (size_t)(next - ids);
    return CAPPY_OK;
}

static cappy_status read_padded(cappy_lexicon *lexicon, const unsigned char *text, size_t length, bool *rewriting,
                                cappy_id *ids, size_t *count)
{
    return read_text(lexicon, text, length, false, rewriting, ids, count);
}

#ifdef CAPPY_MASKS
static CAPPY_MASKS cappy_status read_masked(cappy_lexicon *lexicon, const unsigned char *text, size_t length,
                                            bool *rewriting, cappy_id *ids, size_t *count)
{
    return read_text(lexicon, text, length, true, rewriting, ids, count);
}
#endif

typedef cappy_status way_of_reading(cappy_lexicon *lexicon, const unsigned char *text, size_t length, bool *rewriting,
                                    cappy_id *ids, size_t *count);

static way_of_reading *best_way(void)
{
#ifdef CAPPY_MASKS
    if (cappy_has_masks())
        return read_masked;
#endif
    return read_padded;
}

static cappy_status read_rewritten(way_of_reading *read, cappy_lexicon *lexicon, cappy_text text, cappy_id *ids,
                                   size_t *count)
{
    const unsigned char *bytes = (const unsigned char *)text.bytes;
    bool rewriting = true;
    cappy_status status = read(lexicon, bytes, text.length, &rewriting, ids, count);
    if (status != CAPPY_OK || !rewriting)
        return status;
    if (!cappy_buffer_reserve(&lexicon->text, text.length, 1))
        return CAPPY_NO_MEMORY;
    unsigned char *copy = lexicon->text.bytes;
    const size_t length = rewrite(bytes, text.length, copy);
    rewriting = false;
    return read(lexicon, copy, length, &rewriting, ids, count);
}

/* Where a text is looked for among those read before. */
#define MEMORY 256

cappy_status cappy_read(cappy_lexicon *lexicon, const cappy_text *texts, size_t count, cappy_id *ids,
                        cappy_sequence *sequences)
{
    way_of_reading *read = best_way();
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
        const cappy_status status = read_rewritten(read, lexicon, text, ids, &sequences[i].length);
        if (status != CAPPY_OK)
            return status;
        ids += sequences[i].length;
    }
    return CAPPY_OK;
}
