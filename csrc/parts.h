/* What the kernel's own files need of each other; callers include cappy.h alone. */
#ifndef CAPPY_PARTS_H
#define CAPPY_PARTS_H

#include "buffer.h"
#include "cappy.h"

/* porter.c */

/* Stems a lower-case ASCII word of at least one letter in place; returns the new length, never a greater one. */
size_t cappy_stem(char *word, size_t length);

/* rouge.c */

#define CAPPY_WORD_BITS 64
#define CAPPY_STRIP_WORDS 4

struct cappy_space {
    cappy_watch watch;
    size_t steps;        /* since the watch was asked */
    cappy_status status; /* of the call that goes on */
    bool has_masks;      /* cappy_has_masks() */

    cappy_sequence pattern;
    cappy_buffer masks; /* uint64_t [id]: its places in the pattern, or its number; 0 if the pattern hasn't it */
    cappy_buffer strip; /* uint64_t [number][CAPPY_STRIP_WORDS]: places in a pattern or strip of several words */

    /* For two sequences that are both longer than a strip. */
    cappy_buffer common[2]; /* cappy_id: numbers of what each has in common with the other */
    cappy_buffer carries;   /* unsigned char */

    cappy_buffer read[2]; /* cappy_id: words of predictions and of references */

    cappy_buffer lanes; /* uint64_t [id][CAPPY_MATRIX_ROWS], for a matrix: as `masks`, for several patterns */

    /* For Rouge-Lsum. */
    cappy_buffer rows;      /* uint64_t [row][words]: the whole table of a pair of sentences */
    cappy_buffer hits;      /* bool: which words of a reference's sentence are in the union of its subsequences */
    cappy_buffer counts[2]; /* size_t [id]: how often a summary has it; 0 between pairs */
};

/* cappy_buffer_reserve for a buffer of the space's; without memory, the space's status says so. */
bool cappy_reserve(cappy_space *space, cappy_buffer *buffer, size_t count, size_t element_size);

/* Begins a call: room for ids less than `bound` and for patterns of CAPPY_STRIP_WORDS. */
bool cappy_begin(cappy_space *space, cappy_id bound);

/* Counts steps of work, asks the watch when there were many, and says whether to go on. */
bool cappy_goes_on(cappy_space *space, size_t steps);

/* F-measure of two sequences with so much in common, more than 0, in rouge-score's own order of operations. It is the
 * same whichever is called the reference. */
static inline double cappy_fmeasure(double common, double prediction_length, double reference_length)
{
    const double precision = common / prediction_length, recall = common / reference_length;
    return 2 * precision * recall / (precision + recall);
}

/* Precision, recall and F-measure into `scores`; all 0 if they have nothing in common. */
void cappy_score(size_t common, size_t prediction_length, size_t reference_length, double scores[3]);

/* lcs.c */

/* Makes `pattern`, CAPPY_STRIP_WORDS * CAPPY_WORD_BITS long at most, the one whose places the space has. */
void cappy_lay(cappy_space *space, cappy_sequence pattern);

/* Length of the longest common subsequence; meaningless if the space's status is no longer CAPPY_OK. */
size_t cappy_lcs(cappy_space *space, cappy_sequence prediction, cappy_sequence reference);

/* short.c */

#define CAPPY_SHORT_LENGTH 32

/* Length of the longest common subsequence. The pattern is CAPPY_SHORT_LENGTH long at most; cappy_has_masks() holds. */
size_t cappy_lcs_short(cappy_sequence pattern, cappy_sequence text);

/* lanes.c */

/* Adds the places of patterns, at most CAPPY_MATRIX_ROWS, to masks[id][row]. Patterns longer than CAPPY_WORD_BITS are
 * left out. */
void cappy_lanes_lay(uint64_t *masks, const cappy_sequence *patterns, size_t count);

/* Takes them out again. */
void cappy_lanes_lift(uint64_t *masks, const cappy_sequence *patterns, size_t count);

/* F-measures of the text and each pattern. */
void cappy_lanes_score(const uint64_t *masks, const double pattern_lengths[CAPPY_MATRIX_ROWS], cappy_sequence text,
                       double fmeasures[CAPPY_MATRIX_ROWS]);

#endif
