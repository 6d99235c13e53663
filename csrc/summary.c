/* Rouge-Lsum, as rouge-score defines it: a reference's sentence shares with a summary the union of the subsequences that
 * it shares with the summary's sentences; of each word no more count than either text has.
 *
 * A sentence may have several longest common subsequences with another, whose unions differ. Rouge-score finds its own by
 * walking back through the whole table, so the table's rows are kept here, in the bits of lcs.c, and walked alike. */
#include <string.h>

#include "parts.h"

#define WORD_BITS CAPPY_WORD_BITS

/* Words of the largest table: a gibibyte. */
#define MOST_TABLE_WORDS ((size_t)1 << 27)

typedef struct {
    uint64_t *rows; /* [row][words]: 0 bits where the row steps up, as in lcs.c */
    size_t words;
} table;

/* The table's entry at the end of `columns` columns. */
static size_t entry(table of, size_t row, size_t columns)
{
    const uint64_t *words = of.rows + row * of.words;
    size_t zeros = 0;
    for (size_t k = 0; k < columns / WORD_BITS; k++)
        zeros += (size_t)__builtin_popcountll(~words[k]);
    if (columns % WORD_BITS)
        zeros += (size_t)__builtin_popcountll(~words[columns / WORD_BITS] << (WORD_BITS - columns % WORD_BITS));
    return zeros;
}

static void next_row(const uint64_t *row, const uint64_t *matches, size_t words, uint64_t *next)
{
    uint64_t carry = 0;
    for (size_t k = 0; k < words; k++) {
        const uint64_t partial = row[k] + (row[k] & matches[k]), sum = partial + carry;
        carry = (partial < row[k]) | (sum < partial);
        next[k] = sum | (row[k] & ~matches[k]);
    }
}

/* A row for the reference's sentence up to each of its words, a column for each of the prediction's. */
static void fill(cappy_space *space, table of, cappy_sequence prediction, cappy_sequence reference)
{
    uint64_t *numbers = space->masks.bytes, *places = space->strip.bytes;
    uint64_t last = 0;
    for (size_t i = 0; i < prediction.length; i++) {
        uint64_t *number = &numbers[prediction.ids[i]];
        if (*number == 0)
            *number = ++last;
        places[*number * of.words + i / WORD_BITS] |= (uint64_t)1 << i % WORD_BITS;
    }
    memset(of.rows, 0xFF, of.words * sizeof *of.rows);
    for (size_t i = 0; i < reference.length; i++, of.rows += of.words)
        next_row(of.rows, places + numbers[reference.ids[i]] * of.words, of.words, of.rows + of.words);
    memset(places, 0, (last + 1) * of.words * sizeof *places);
    for (size_t i = 0; i < prediction.length; i++)
        numbers[prediction.ids[i]] = 0;
}

/* Sets the words of a reference's sentence that are in the subsequence which rouge-score finds. */
static void walk_back(table of, cappy_sequence prediction, cappy_sequence reference, bool *hits)
{
    size_t i = reference.length, j = prediction.length;
    size_t common = entry(of, i, j);
    while (common > 0) {
        if (reference.ids[i - 1] == prediction.ids[j - 1]) {
            hits[--i] = true;
            j--;
            common--;
            continue;
        }
        const uint64_t word = of.rows[i * of.words + (j - 1) / WORD_BITS];
        const size_t left = common - !(word >> (j - 1) % WORD_BITS & 1), up = entry(of, i - 1, j);
        if (left > up)
            j--;
        else
            i--;
        common = left > up ? left : up;
    }
}

static void add_subsequence(cappy_space *space, cappy_sequence prediction, cappy_sequence reference)
{
    const size_t words = prediction.length / WORD_BITS + 1;
    if (reference.length + 1 > MOST_TABLE_WORDS / words || prediction.length + 1 > MOST_TABLE_WORDS / words) {
        space->status = CAPPY_TOO_LARGE;
        return;
    }
    if (!cappy_goes_on(space, (reference.length + 1) * words))
        return;
    if (!cappy_reserve(space, &space->rows, (reference.length + 1) * words, sizeof(uint64_t)) ||
        !cappy_reserve(space, &space->strip, (prediction.length + 1) * words, sizeof(uint64_t)))
        return;
    const table of = {space->rows.bytes, words};
    fill(space, of, prediction, reference);
    walk_back(of, prediction, reference, space->hits.bytes);
}

/* Counts each of the summary's words, or sets their counts back to 0; returns how many words it has. */
static size_t count_words(cappy_summary summary, size_t *counts, bool clear)
{
    size_t total = 0;
    for (size_t k = 0; k < summary.count; k++) {
        const cappy_sequence sentence = summary.sentences[k];
        for (size_t i = 0; i < sentence.length; i++)
            counts[sentence.ids[i]] = clear ? 0 : counts[sentence.ids[i]] + 1;
        total += sentence.length;
    }
    return total;
}

static size_t count_hits(cappy_space *space, cappy_summary prediction, cappy_summary reference)
{
    size_t *left_in_prediction = space->counts[0].bytes, *left_in_reference = space->counts[1].bytes;
    bool *hits = space->hits.bytes;
    size_t total = 0;
    for (size_t r = 0; r < reference.count; r++) {
        const cappy_sequence sentence = reference.sentences[r];
        memset(hits, 0, sentence.length * sizeof *hits);
        for (size_t p = 0; p < prediction.count && space->status == CAPPY_OK; p++)
            add_subsequence(space, prediction.sentences[p], sentence);
        for (size_t i = 0; i < sentence.length; i++) {
            const cappy_id id = sentence.ids[i];
            if (hits[i] && left_in_prediction[id] > 0 && left_in_reference[id] > 0) {
                left_in_prediction[id]--;
                left_in_reference[id]--;
                total++;
            }
        }
    }
    return total;
}

static void score_summary(cappy_space *space, cappy_summary prediction, cappy_summary reference, double scores[3])
{
    size_t longest = 0;
    for (size_t r = 0; r < reference.count; r++)
        if (reference.sentences[r].length > longest)
            longest = reference.sentences[r].length;
    if (!cappy_reserve(space, &space->hits, longest, sizeof(bool)))
        return;
    const size_t prediction_length = count_words(prediction, space->counts[0].bytes, false);
    const size_t reference_length = count_words(reference, space->counts[1].bytes, false);
    const size_t common = count_hits(space, prediction, reference);
    cappy_score(common, prediction_length, reference_length, scores);
    count_words(prediction, space->counts[0].bytes, true);
    count_words(reference, space->counts[1].bytes, true);
}

cappy_status cappy_rouge_lsum_pairs(cappy_space *space, const cappy_summary *predictions,
                                    const cappy_summary *references, size_t count, cappy_id bound, double *scores)
{
    if (!cappy_begin(space, bound) || !cappy_reserve(space, &space->counts[0], bound, sizeof(size_t)) ||
        !cappy_reserve(space, &space->counts[1], bound, sizeof(size_t)))
        return space->status;
    for (size_t i = 0; i < count && cappy_goes_on(space, 0); i++)
        score_summary(space, predictions[i], references[i], scores + 3 * i);
    return space->status;
}
