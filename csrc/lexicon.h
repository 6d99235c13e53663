/* The look-up of a word that the lexicon knows, compiled into the loop that reads texts; lexicon.c has the rest. */
#ifndef CAPPY_LEXICON_H
#define CAPPY_LEXICON_H

#include <string.h>

#include "buffer.h"
#include "cappy.h"

/* A hash table whose keys are the words' letters themselves, 16 bytes at most, so that a look-up is two loads and two
 * comparisons whatever the word. */
#define CAPPY_KEY_BYTES 16

typedef struct {
    uint64_t low, high;
} cappy_key;

typedef struct {
    cappy_key key;
    cappy_id id; /* 0 where the slot is free */
} cappy_slot;

/* Half full at most. */
typedef struct {
    cappy_slot *slots;
    unsigned shift; /* of a hash, to the number of a slot */
    size_t mask;
} cappy_table;

struct cappy_lexicon {
    cappy_table table;
    uint64_t kind; /* bits that the keys of words in texts have, besides their letters */
    size_t used;   /* slots */
    cappy_id last; /* the id given last */
    cappy_buffer text; /* a text that had to be rewritten */
    cappy_buffer word; /* a word that is being stemmed */
};

/* Makes room for that many new words of so many letters in all. */
cappy_status cappy_lexicon_reserve(cappy_lexicon *lexicon, size_t words, size_t letters);

/* The id of a word that the table doesn't have as it is written, or that is longer than a key; 0 if there is no
 * memory. Reads CAPPY_KEY_BYTES, or the word if it is longer. */
cappy_id cappy_lexicon_add(cappy_lexicon *lexicon, const unsigned char *letters, size_t length);

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

/* The slot that has the key, or the free one where it belongs. */
static inline cappy_slot *cappy_table_find(const cappy_table *table, cappy_key key)
{
    /* Multiplication carries every letter's bits to the top of the product. */
    const uint64_t hash = (key.low ^ key.high * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    for (size_t at = (size_t)(hash >> table->shift);; at = (at + 1) & table->mask) {
        cappy_slot *slot = &table->slots[at];
        if ((slot->key.low == key.low && slot->key.high == key.high) || slot->id == 0)
            return slot;
    }
}

/* The word's id; 0 if there is no memory. Room for it has been reserved. Reads CAPPY_KEY_BYTES. */
static inline cappy_id cappy_lexicon_id(cappy_lexicon *lexicon, const unsigned char *letters, size_t length)
{
    if (length <= CAPPY_KEY_BYTES) {
        cappy_key key = cappy_key_of(letters, length);
        key.low |= lexicon->kind;
        const cappy_id id = cappy_table_find(&lexicon->table, key)->id;
        if (id)
            return id;
    }
    return cappy_lexicon_add(lexicon, letters, length);
}

#endif
