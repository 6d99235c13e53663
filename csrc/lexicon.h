/* The look-up of a word that the lexicon knows, compiled into the loop that reads texts; lexicon.c has the rest. */
#ifndef CAPPY_LEXICON_H
#define CAPPY_LEXICON_H

#include <string.h>

#include "buffer.h"
#include "cappy.h"

#define CAPPY_KEY_BYTES 16

typedef struct {
    uint64_t low, high;
} cappy_key;

__extension__ typedef unsigned __int128 cappy_wide;

typedef struct {
    cappy_key key;
    cappy_id id; /* 0 where the slot is free */
} cappy_slot;

/* A hash table whose keys are the words' letters themselves, 16 at most, so that comparing words is two comparisons
 * whatever they are. */
typedef struct {
    cappy_slot *slots;
    size_t mask; /* one less than there are, a power of two */
    size_t used; /* half of them at most */
} cappy_table;

struct cappy_lexicon {
    cappy_table table;
    uint64_t kind; /* bits that the keys of words in texts have, besides their letters */
    cappy_id last; /* the id given last */
    cappy_buffer text; /* a text that had to be rewritten */
    cappy_buffer word; /* a long one */
};

/* Makes room for that many new words of so many letters in all. */
cappy_status cappy_lexicon_reserve(cappy_lexicon *lexicon, size_t words, size_t letters);

/* A new id for the key of a word in a text, which the table doesn't have, and its length. */
cappy_id cappy_lexicon_add(cappy_lexicon *lexicon, cappy_key written, size_t length);

/* The id of a word that is longer than a key; 0 if there is no memory. */
cappy_id cappy_lexicon_long_word(cappy_lexicon *lexicon, const unsigned char *letters, size_t length);

/* At most CAPPY_KEY_BYTES letters and digits in lower case, and zeros. Reads CAPPY_KEY_BYTES. */
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

/* Where the search for a key begins. The upper half of the product depends on all letters, the lower half tells the links
 * of a chain apart, whose numbers go up one by one; the constants break the patterns of repeated letters. (The function
 * is that of wyhash, by Wang Yi.) */
static inline size_t cappy_hash(cappy_key key)
{
    const cappy_wide product = (cappy_wide)(key.low ^ 0xA0761D6478BD642Fu) * (key.high ^ 0xE7037ED1A0B428DBu);
    return (size_t)(product >> 64 ^ product);
}

/* The key's id, 0 if the table doesn't have it. */
static inline cappy_id cappy_table_id(const cappy_table *table, cappy_key key)
{
    for (size_t at = cappy_hash(key);; at++) {
        const cappy_slot *slot = &table->slots[at & table->mask];
        if (slot->key.low == key.low && slot->key.high == key.high)
            return slot->id;
        if (slot->id == 0)
            return 0;
    }
}

#endif
