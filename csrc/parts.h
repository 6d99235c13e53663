/* What the kernel's own files need of each other; callers include cappy.h alone. */
#ifndef CAPPY_PARTS_H
#define CAPPY_PARTS_H

#include <stdint.h>

#include "cappy.h"

/* A word's number within one vocabulary, counted from 1. */
typedef uint32_t cappy_id;

/* The id of a word that the vocabulary does not have. */
#define CAPPY_UNKNOWN 0

typedef struct {
    uint32_t hash;
    uint32_t length;
    size_t start; /* into the vocabulary's bytes */
} cappy_word;

/* Distinct words with their ids. rouge.c owns the arrays and sizes them for the worst case. */
typedef struct {
    char *bytes;      /* the words one after the other; behind them room for the word being read */
    size_t used;      /* bytes taken by the words */
    cappy_word *word; /* [id - 1] */
    cappy_id count;
    cappy_id *slot; /* hash table of ids, CAPPY_UNKNOWN where free; at most half full */
    size_t slot_mask;
} cappy_vocabulary;

/* words.c */

/* The most words that a text of `length` bytes can have: they are one byte at least, and a byte apart. */
static inline size_t cappy_word_bound(size_t length) { return length / 2 + 1; }

/* Slots of a hash table for at most `words` words: a power of two, so that the table stays half empty. */
size_t cappy_slot_count(size_t words);

/* Empties the vocabulary and makes it ready for at most `words` words. */
void cappy_vocabulary_clear(cappy_vocabulary *vocabulary, size_t words);

/* Ids of the text's words into `ids`; returns how many. Words that the vocabulary lacks are added, or get
 * CAPPY_UNKNOWN, as `add` says. */
size_t cappy_read_words(cappy_vocabulary *vocabulary, cappy_text text, bool stem, bool add, cappy_id *ids);

/* porter.c */

/* Stems a lower-case ASCII word of at least one letter in place; returns the new length, never a greater one. */
size_t cappy_stem(char *word, size_t length);

/* lcs.c */

/* Length of the longest common subsequence. `masks`: one zero for every id that can occur, left zero again;
 * `carries`: as many bytes as the longer sequence has ids. */
size_t cappy_lcs(const cappy_id *a, size_t a_length, const cappy_id *b, size_t b_length, uint64_t *masks,
                 unsigned char *carries);

#endif
