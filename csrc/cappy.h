/* Rouge-L of texts, equal to the rouge-score package to the last bit: texts become sequences of word ids, sequences
 * become scores. No Python, no global state, no locks: each thread has its own lexicon, and may score any sequences. */
#ifndef CAPPY_H
#define CAPPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    CAPPY_OK = 0,
    CAPPY_NO_MEMORY = 1, /* an allocation failed; nothing that the call allocated is left */
    CAPPY_TOO_LARGE = 2, /* more different words, or longer sentences in Rouge-Lsum, than the kernel's sizes allow */
    CAPPY_STOPPED = 3,   /* the watch said so; the scores are incomplete */
} cappy_status;

/* A word's number. Equal numbers are equal words, within one lexicon. */
typedef uint32_t cappy_id;

/* UTF-8, not terminated. Any bytes are safe; those of invalid sequences separate words. */
typedef struct {
    const char *bytes;
    size_t length;
} cappy_text;

typedef struct {
    const cappy_id *ids;
    size_t length;
} cappy_sequence;

/* A text of several sentences, for Rouge-Lsum. */
typedef struct {
    const cappy_sequence *sentences;
    size_t count;
} cappy_summary;

/* Asked some hundred times a second in a long call: other than 0 ends it with CAPPY_STOPPED. */
typedef struct {
    int (*stop)(void *context);
    void *context;
} cappy_watch;

/* Words and their ids. */
typedef struct cappy_lexicon cappy_lexicon;

/* `stem`: words of more than three letters are Porter-stemmed. NULL if there is no memory. */
cappy_lexicon *cappy_lexicon_new(bool stem);
void cappy_lexicon_free(cappy_lexicon *lexicon);

/* All ids that the lexicon has given are less than this. */
cappy_id cappy_lexicon_bound(const cappy_lexicon *lexicon);

/* How many words, stemmed or not, the lexicon remembers. */
size_t cappy_lexicon_size(const cappy_lexicon *lexicon);

/* How many bytes it holds. */
size_t cappy_lexicon_bytes(const cappy_lexicon *lexicon);

/* Room for the words of a text of `length` bytes: they are a byte at least and a byte apart, and are written four at a
 * time. */
static inline size_t cappy_word_bound(size_t length) { return length / 2 + 4; }

/* The words of `count` texts as sequences, whose ids go into `ids`, cappy_word_bound of them for each text. Texts
 * that are the same bytes at the same place are mostly read once. */
cappy_status cappy_read(cappy_lexicon *lexicon, const cappy_text *texts, size_t count, cappy_id *ids,
                        cappy_sequence *sequences);

/* What scoring needs besides the sequences: kept from call to call, since it is large, and grown as they need it. */
typedef struct cappy_space cappy_space;

/* NULL if there is no memory. */
cappy_space *cappy_space_new(cappy_watch watch);
void cappy_space_free(cappy_space *space);

/* How many bytes it holds. */
size_t cappy_space_bytes(cappy_space *space);

/* The calls below that take sequences take the `bound` that their ids are less than. */

/* Precision, recall and F-measure of each prediction against its reference into `scores`, count x 3. Fastest where
 * neighbours share one reference. */
cappy_status cappy_rouge_l_pairs(cappy_space *space, const cappy_sequence *predictions,
                                 const cappy_sequence *references, size_t count, cappy_id bound, double *scores);

/* The same of texts, which are read and scored some at a time, so that their words are still at hand. */
cappy_status cappy_rouge_l_texts(cappy_space *space, cappy_lexicon *lexicon, const cappy_text *predictions,
                                 const cappy_text *references, size_t count, double *scores);

/* The same for Rouge-Lsum, whose texts are summaries. */
cappy_status cappy_rouge_lsum_pairs(cappy_space *space, const cappy_summary *predictions,
                                    const cappy_summary *references, size_t count, cappy_id bound, double *scores);

/* F-measure of every pair of sequences into `fmeasures`, count x count, symmetric. Of the blocks of
 * CAPPY_MATRIX_ROWS rows it does first_block, first_block + block_step, ... from the diagonal on, and mirrors them; so
 * `block_step` threads share a matrix evenly. */
#define CAPPY_MATRIX_ROWS 8
cappy_status cappy_rouge_l_matrix(cappy_space *space, const cappy_sequence *sequences, size_t count,
                                  size_t first_block, size_t block_step, cappy_id bound, double *fmeasures);

#endif
