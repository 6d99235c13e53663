/* Rouge-L over a batch of texts, equal to the rouge-score package to the last bit. No Python, no state between calls,
 * no locks: calls may run at the same time in several threads. */
#ifndef CAPPY_H
#define CAPPY_H

#include <stdbool.h>
#include <stddef.h>

typedef enum {
    CAPPY_OK = 0,
    CAPPY_NO_MEMORY = 1, /* an allocation failed; nothing is left allocated */
    CAPPY_TOO_LARGE = 2, /* a prediction, one prediction's references, or the texts of a matrix exceed 1 GiB */
} cappy_status;

/* UTF-8, not terminated. Any bytes are safe; those of invalid sequences separate words. */
typedef struct {
    const char *bytes;
    size_t length;
} cappy_text;

/* One prediction and the references it is scored against. Neighbouring items that share the `references` pointer
 * and the count share their tokenising too. */
typedef struct {
    cappy_text prediction;
    const cappy_text *references;
    size_t reference_count;
} cappy_item;

/* Precision, recall and F-measure of each item's best reference (greatest F-measure, the first of equals) into
 * `scores`, count x 3. `stem`: Porter-stem words of more than three letters. */
cappy_status cappy_rouge_l_pairs(const cappy_item *items, size_t count, bool stem, double *scores);

/* F-measure of every pair of texts into `fmeasures`, count x count, symmetric. Does rows first_row,
 * first_row + row_step, ... from the diagonal on, and mirrors them; so `row_step` threads share a matrix evenly. */
cappy_status cappy_rouge_l_matrix(const cappy_text *texts, size_t count, size_t first_row, size_t row_step, bool stem,
                                  double *fmeasures);

#endif
