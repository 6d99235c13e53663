/* Texts to words. Words are what rouge-score finds: runs of [a-z0-9] in the lower-cased text. */
#include <string.h>

#include "blocks.h"

#define BLOCK CAPPY_BLOCK
#define BLOCK_WORDS (BLOCK / 2)
#define END (BLOCK + CAPPY_KEY_BYTES) /* what is read of a text at once */

/* So many words are read before they are looked up: their slots arrive from memory meanwhile. */
#define QUEUE 256

typedef struct {
    cappy_lexicon *lexicon;
    cappy_key keys[QUEUE + BLOCK_WORDS];
    size_t count;
    cappy_id *ids; /* where those of the words go */
    cappy_status status;
} queue;

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

/* Makes `text` a copy with the two characters' lower case for them; returns its length, never a greater one. */
static size_t rewrite(queue *words, const unsigned char **text, size_t length)
{
    cappy_buffer *copies = &words->lexicon->text;
    if (!cappy_buffer_reserve(copies, length, 1)) {
        words->status = CAPPY_NO_MEMORY;
        return 0;
    }
    unsigned char *copy = copies->bytes;
    const unsigned char *at = *text, *end = at + length;
    *text = copy;
    while (at < end) {
        if (is_dotted_i(at, end)) {
            *copy++ = 'i';
            *copy++ = ' ';
            at += 2;
        } else if (is_kelvin(at, end)) {
            *copy++ = 'k';
            at += 3;
        } else {
            *copy++ = *at++;
        }
    }
    return (size_t)(copy - *text);
}

static bool is_in_word(unsigned char byte)
{
    return (unsigned char)((byte | 0x20) - 'a') <= 'z' - 'a' || (unsigned char)(byte - '0') <= '9' - '0';
}

static size_t word_length(const unsigned char *text, size_t length)
{
    size_t end = 0;
    while (end < length && is_in_word(text[end]))
        end++;
    return end;
}

static void look_up(queue *words)
{
    words->status = cappy_look_up(words->lexicon, words->keys, words->count, words->ids);
    words->ids += words->count;
    words->count = 0;
}

/* Sets the right keys of a block's words that are longer than a key; `keys` are those of all words in `starts`. */
static void set_long_keys(queue *words, cappy_key *keys, const unsigned char *text, size_t length, uint64_t starts,
                          uint64_t too_long)
{
    for (; too_long && words->status == CAPPY_OK; too_long &= too_long - 1) {
        const size_t start = (size_t)__builtin_ctzll(too_long);
        cappy_key *key = keys + __builtin_popcountll(starts & (((uint64_t)1 << start) - 1));
        words->status =
            cappy_key_of_long(words->lexicon, text + start, word_length(text + start, length - start), key);
    }
}

#ifdef CAPPY_MASKS
#define BLOCK_AT(text, rest, masked) ((masked) ? cappy_block_masked(text, rest) : cappy_block_at(text))
#define SPLIT(lexicon, text, rest, starts, ends, keys, masked)                                                         \
    ((masked) ? cappy_split_masked(lexicon, text, rest, starts, ends, keys)                                            \
              : cappy_split(lexicon, text, starts, ends, keys))
#else
#define BLOCK_AT(text, rest, masked) ((void)(masked), cappy_block_at(text))
#define SPLIT(lexicon, text, rest, starts, ends, keys, masked) cappy_split(lexicon, text, starts, ends, keys)
#endif

/* Queues a text's words, and looks up those that are too many. `masked`, a constant for the compiler, is the way of
 * reading. */
static inline __attribute__((always_inline)) void read_text(queue *words, const unsigned char *text, size_t length,
                                                            bool masked)
{
    /* The end of the text, with zeros behind it that may be read over. */
    unsigned char end[2 * END];
    bool padded = masked, checked = false;
    while (length && words->status == CAPPY_OK) {
        if (!padded && length < END) {
            memset(end, 0, sizeof end);
            text = memcpy(end, text, length);
            padded = true;
        }
        const cappy_block block = BLOCK_AT(text, length, masked);
        /* A word that fills the block may go on to where it isn't ASCII. */
        if (!checked && (!block.ascii || block.in_word == UINT64_MAX)) {
            checked = true;
            if (needs_rewriting(text, length)) {
                length = rewrite(words, &text, length);
                padded = masked;
                continue;
            }
        }
        const uint64_t behind = block.in_word << 1; /* bytes that follow one of a word */
        const uint64_t starts = block.in_word & ~behind, ends = behind & ~block.in_word;
        cappy_key *keys = words->keys + words->count;
        uint64_t too_long = SPLIT(words->lexicon, text, length, starts, ends, keys, masked);
        words->count += (size_t)__builtin_popcountll(ends);
        /* A word that goes on behind the block begins the next one, */
        size_t step = block.in_word >> (BLOCK - 1) ? BLOCK - 1 - (size_t)__builtin_clzll(starts) : BLOCK;
        if (step == 0) { /* or is all of it. */
            words->count++;
            too_long = starts;
            step = word_length(text, length);
        }
        if (too_long)
            set_long_keys(words, keys, text, length, starts, too_long);
        if (words->count >= QUEUE && words->status == CAPPY_OK)
            look_up(words);
        if (step >= length)
            break;
        text += step;
        length -= step;
    }
}

static void read_padded(queue *words, const unsigned char *text, size_t length)
{
    read_text(words, text, length, false);
}

#ifdef CAPPY_MASKS
static CAPPY_MASKS void read_masked(queue *words, const unsigned char *text, size_t length)
{
    read_text(words, text, length, true);
}
#endif

typedef void way_of_reading(queue *words, const unsigned char *text, size_t length);

static way_of_reading *best_way(void)
{
#ifdef CAPPY_MASKS
    if (cappy_has_masks())
        return read_masked;
#endif
    return read_padded;
}

/* Texts lie here and there in memory: those that are read soon are fetched, but for what comes by itself then. */
#define TEXTS_AHEAD 8
#define FETCHED_BYTES 512

static void fetch(cappy_text text)
{
    for (size_t at = 0; at < text.length && at < FETCHED_BYTES; at += 64)
        __builtin_prefetch(text.bytes + at);
}

/* Where a text is looked for among those read before. */
#define MEMORY 256

cappy_status cappy_read(cappy_lexicon *lexicon, const cappy_text *texts, size_t count, cappy_id *ids,
                        cappy_sequence *sequences)
{
    way_of_reading *read = best_way();
    size_t memory[MEMORY] = {0}; /* one more than the index of a text */
    queue words;
    words.lexicon = lexicon;
    words.count = 0;
    words.ids = ids;
    words.status = CAPPY_OK;
    for (size_t i = 0; i < count && words.status == CAPPY_OK; i++) {
        const cappy_text text = texts[i];
        if (i + TEXTS_AHEAD < count)
            fetch(texts[i + TEXTS_AHEAD]);
        /* Addresses differ least in their lowest bits. */
        size_t *remembered = &memory[(uintptr_t)text.bytes / 16 % MEMORY];
        const size_t same = *remembered - 1;
        *remembered = i + 1;
        if (same < i && texts[same].bytes == text.bytes && texts[same].length == text.length) {
            sequences[i] = sequences[same];
            continue;
        }
        sequences[i].ids = words.ids + words.count;
        read(&words, (const unsigned char *)text.bytes, text.length);
        sequences[i].length = (size_t)(words.ids + words.count - sequences[i].ids);
    }
    if (words.status == CAPPY_OK)
        look_up(&words);
    return words.status;
}
