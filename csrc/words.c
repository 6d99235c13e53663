/* Texts to word ids. Words are what rouge-score finds: runs of [a-z0-9] in the lower-cased text. */
#include <string.h>

#include "parts.h"

/* Only words of more letters than this are stemmed, as in rouge-score. */
#define UNSTEMMED_LENGTH 3

size_t cappy_slot_count(size_t words)
{
    size_t count = 16;
    while (count < 2 * words)
        count *= 2;
    return count;
}

void cappy_vocabulary_clear(cappy_vocabulary *vocabulary, size_t words)
{
    const size_t slots = cappy_slot_count(words);
    memset(vocabulary->slot, 0, slots * sizeof *vocabulary->slot);
    vocabulary->slot_mask = slots - 1;
    vocabulary->count = 0;
    vocabulary->used = 0;
}

/* The lower-case form of an ASCII letter or digit, 0 for every other byte. */
static const char lower[256] = {
    ['0'] = '0', ['1'] = '1', ['2'] = '2', ['3'] = '3', ['4'] = '4', ['5'] = '5', ['6'] = '6', ['7'] = '7',
    ['8'] = '8', ['9'] = '9', ['a'] = 'a', ['b'] = 'b', ['c'] = 'c', ['d'] = 'd', ['e'] = 'e', ['f'] = 'f',
    ['g'] = 'g', ['h'] = 'h', ['i'] = 'i', ['j'] = 'j', ['k'] = 'k', ['l'] = 'l', ['m'] = 'm', ['n'] = 'n',
    ['o'] = 'o', ['p'] = 'p', ['q'] = 'q', ['r'] = 'r', ['s'] = 's', ['t'] = 't', ['u'] = 'u', ['v'] = 'v',
    ['w'] = 'w', ['x'] = 'x', ['y'] = 'y', ['z'] = 'z', ['A'] = 'a', ['B'] = 'b', ['C'] = 'c', ['D'] = 'd',
    ['E'] = 'e', ['F'] = 'f', ['G'] = 'g', ['H'] = 'h', ['I'] = 'i', ['J'] = 'j', ['K'] = 'k', ['L'] = 'l',
    ['M'] = 'm', ['N'] = 'n', ['O'] = 'o', ['P'] = 'p', ['Q'] = 'q', ['R'] = 'r', ['S'] = 's', ['T'] = 't',
    ['U'] = 'u', ['V'] = 'v', ['W'] = 'w', ['X'] = 'x', ['Y'] = 'y', ['Z'] = 'z',
};

/* Two characters outside ASCII have an ASCII letter in their lower case:
 * U+0130 (dotted capital I) becomes "i" and a combining dot, which ends the word; */
static bool is_dotted_i(const unsigned char *at, const unsigned char *end)
{
    return at[0] == 0xC4 && end - at >= 2 && at[1] == 0xB0;
}

/* U+212A (the Kelvin sign) becomes "k". */
static bool is_kelvin(const unsigned char *at, const unsigned char *end)
{
    return at[0] == 0xE2 && end - at >= 3 && at[1] == 0x84 && at[2] == 0xAA;
}

/* Copies the next word, lower-cased, and moves the cursor behind it; returns its length, 0 at the end of the text. */
static size_t next_word(const unsigned char **cursor, const unsigned char *end, char *word)
{
    const unsigned char *at = *cursor;
    size_t length = 0;
    while (at < end) {
        if (lower[*at]) {
            word[length++] = lower[*at++];
        } else if (is_kelvin(at, end)) {
            word[length++] = 'k';
            at += 3;
        } else if (is_dotted_i(at, end)) {
            word[length++] = 'i';
            at += 2;
            break;
        } else {
            at++;
            if (length)
                break;
        }
    }
    *cursor = at;
    return length;
}

/* FNV-1a. It only chooses the slot: identity is decided by comparing the letters. */
static uint32_t hash_word(const char *word, size_t length)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)word[i]) * 16777619u;
    return hash ^ hash >> 15;
}

/* The id of the word that stands behind the vocabulary's own. */
static cappy_id find_word(cappy_vocabulary *vocabulary, size_t length, bool add)
{
    const char *letters = vocabulary->bytes + vocabulary->used;
    const uint32_t hash = hash_word(letters, length);
    size_t slot = hash & vocabulary->slot_mask;
    for (cappy_id id; (id = vocabulary->slot[slot]) != CAPPY_UNKNOWN; slot = (slot + 1) & vocabulary->slot_mask) {
        const cappy_word *known = &vocabulary->word[id - 1];
        if (known->hash == hash && known->length == length &&
            memcmp(vocabulary->bytes + known->start, letters, length) == 0)
            return id;
    }
    if (!add)
        return CAPPY_UNKNOWN;
    vocabulary->word[vocabulary->count] = (cappy_word){hash, (uint32_t)length, vocabulary->used};
    vocabulary->used += length;
    return vocabulary->slot[slot] = ++vocabulary->count;
}

size_t cappy_read_words(cappy_vocabulary *vocabulary, cappy_text text, bool stem, bool add, cappy_id *ids)
{
    const unsigned char *cursor = (const unsigned char *)text.bytes;
    const unsigned char *end = cursor + text.length;
    size_t count = 0;
    for (;;) {
        char *word = vocabulary->bytes + vocabulary->used;
        size_t length = next_word(&cursor, end, word);
        if (length == 0)
            return count;
        if (stem && length > UNSTEMMED_LENGTH)
            length = cappy_stem(word, length);
        ids[count++] = find_word(vocabulary, length, add);
    }
}
