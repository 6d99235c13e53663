/* Words' keys, and the table that leads from them to ids. */
#ifndef CAPPY_LEXICON_H
#define CAPPY_LEXICON_H

#include <string.h>

#include "buffer.h"
#include "cappy.h"

#define CAPPY_KEY_BYTES 16
#define CAPPY_FOUR 4 /* keys in a vector; to be written at once */

/* At most CAPPY_KEY_BYTES letters and digits in lower case, and zeros; besides them, bits that tell kinds of keys apart. So
 * to compare words is to compare two numbers, whatever they are. */
typedef struct {
    uint64_t low, high;
} cappy_key;

typedef struct {
    cappy_key key;
    cappy_id id; /* 0 where the slot is free */
} cappy_slot;

typedef struct {
    cappy_slot *slots;
    size_t mask; /* one less than there are, a power of two */
    size_t used; /* half of them at most */
    int shift;   /* 64 less the bits of a slot's number */
} cappy_table;

struct cappy_lexicon {
    cappy_table table;
    uint64_t kind; /* bits that the keys of words in texts have in `low`, besides their letters */
    cappy_id last; /* the id given last */
    cappy_buffer text; /* a text that had to be rewritten */
    cappy_buffer word; /* a long one */
};

#define CAPPY_HASH_LOW 0xA0761D6478BD642Fu
#define CAPPY_HASH_HIGH 0xE7037ED1A0B428DBu

/* Where the search for a key begins: the topmost bits of the sum, on which all letters act. */
static inline size_t cappy_first_slot(const cappy_table *table, cappy_key key)
{
    return (size_t)((key.low * CAPPY_HASH_LOW + key.high * CAPPY_HASH_HIGH) >> table->shift);
}

/* Ids of words, by their keys as written in texts, into `ids`, where there is room for CAPPY_FOUR - 1 more. */
cappy_status cappy_look_up(cappy_lexicon *lexicon, const cappy_key *keys, size_t count, cappy_id *ids);

/* The key that stands for a word of any length. */
cappy_status cappy_key_of_long(cappy_lexicon *lexicon, const unsigned char *letters, size_t length, cappy_key *key);

#endif
