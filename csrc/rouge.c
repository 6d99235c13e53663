/* A batch of Rouge-L scores in one call. Everything is allocated here, once a call, for the largest item. */
#include <stdlib.h>

#include "parts.h"

/* Most words that are held at a time: keeps every count and byte size below 2^32. */
#define MAX_WORDS ((size_t)1 << 29)

/* Upper bounds over the items of a batch. */
typedef struct {
    size_t reference_count;
    size_t reference_words;
    size_t reference_bytes;
    size_t prediction_words;
    size_t prediction_bytes;
} bounds;

typedef struct {
    cappy_vocabulary vocabulary; /* the words of the references */
    cappy_id *reference_ids;     /* of all references, one after the other */
    size_t *reference_ends;      /* [k]: where the k-th reference's ids end */
    cappy_id *prediction_ids;
    uint64_t *masks;
    unsigned char *carries;
} workspace;

static void raise_to(size_t *bound, size_t value)
{
    if (*bound < value)
        *bound = value;
}

/* Upper bound of the words in texts, of which at most MAX_WORDS may be held together. */
static cappy_status count_words(const cappy_text *texts, size_t count, size_t *words)
{
    *words = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t more = cappy_word_bound(texts[i].length);
        if (more > MAX_WORDS - *words)
            return CAPPY_TOO_LARGE;
        *words += more;
    }
    return CAPPY_OK;
}

static cappy_status measure(const cappy_item *items, size_t count, bounds *most)
{
    for (size_t i = 0; i < count; i++) {
        const cappy_item *item = &items[i];
        size_t reference_words, prediction_words;
        if (count_words(item->references, item->reference_count, &reference_words) != CAPPY_OK ||
            count_words(&item->prediction, 1, &prediction_words) != CAPPY_OK)
            return CAPPY_TOO_LARGE;
        raise_to(&most->reference_count, item->reference_count);
        raise_to(&most->reference_words, reference_words);
        raise_to(&most->prediction_words, prediction_words);
        raise_to(&most->prediction_bytes, item->prediction.length);
    }
    most->reference_bytes = 2 * most->reference_words;
    return CAPPY_OK;
}

/* calloc refuses a product that overflows; the sums here can't, by MAX_WORDS. One element more than needed, since
 * calloc may answer NULL to a request for none. */
static cappy_status allocate(workspace *work, const bounds *most)
{
    cappy_vocabulary *vocabulary = &work->vocabulary;
    const size_t longest =
        most->reference_words > most->prediction_words ? most->reference_words : most->prediction_words;
    vocabulary->bytes = calloc(most->reference_bytes + most->prediction_bytes + 1, 1);
    vocabulary->word = calloc(most->reference_words + 1, sizeof *vocabulary->word);
    vocabulary->slot = calloc(cappy_slot_count(most->reference_words), sizeof *vocabulary->slot);
    work->reference_ids = calloc(most->reference_words + 1, sizeof *work->reference_ids);
    work->reference_ends = calloc(most->reference_count + 1, sizeof *work->reference_ends);
    work->prediction_ids = calloc(most->prediction_words + 1, sizeof *work->prediction_ids);
    work->masks = calloc(most->reference_words + 1, sizeof *work->masks);
    work->carries = calloc(longest + 1, sizeof *work->carries);
    const bool complete = vocabulary->bytes && vocabulary->word && vocabulary->slot && work->reference_ids &&
                          work->reference_ends && work->prediction_ids && work->masks && work->carries;
    return complete ? CAPPY_OK : CAPPY_NO_MEMORY;
}

static void release(workspace *work)
{
    free(work->vocabulary.bytes);
    free(work->vocabulary.word);
    free(work->vocabulary.slot);
    free(work->reference_ids);
    free(work->reference_ends);
    free(work->prediction_ids);
    free(work->masks);
    free(work->carries);
}

/* Makes the vocabulary and the ids of these references. */
static void read_references(workspace *work, const cappy_text *references, size_t count, bool stem)
{
    size_t words, end = 0;
    count_words(references, count, &words);
    cappy_vocabulary_clear(&work->vocabulary, words);
    for (size_t k = 0; k < count; k++) {
        end += cappy_read_words(&work->vocabulary, references[k], stem, true, work->reference_ids + end);
        work->reference_ends[k] = end;
    }
}

static size_t reference_start(const workspace *work, size_t k) { return k ? work->reference_ends[k - 1] : 0; }

/* Precision, recall and F-measure in rouge-score's own order of operations; 0 without a common word. */
static void score_lcs(size_t lcs, size_t prediction_length, size_t reference_length, double score[3])
{
    score[0] = score[1] = score[2] = 0.0;
    if (lcs == 0)
        return;
    const double precision = (double)lcs / (double)prediction_length;
    const double recall = (double)lcs / (double)reference_length;
    score[0] = precision;
    score[1] = recall;
    score[2] = 2 * precision * recall / (precision + recall);
}

/* The k-th reference against a prediction. */
static void score_reference(const workspace *work, size_t k, const cappy_id *prediction, size_t prediction_length,
                            double score[3])
{
    const size_t start = reference_start(work, k);
    const size_t length = work->reference_ends[k] - start;
    const size_t lcs =
        cappy_lcs(work->reference_ids + start, length, prediction, prediction_length, work->masks, work->carries);
    score_lcs(lcs, prediction_length, length, score);
}

static void score_item(const workspace *work, size_t reference_count, size_t prediction_length, double best[3])
{
    best[0] = best[1] = best[2] = 0.0;
    for (size_t k = 0; k < reference_count; k++) {
        double score[3];
        score_reference(work, k, work->prediction_ids, prediction_length, score);
        if (score[2] > best[2]) {
            best[0] = score[0];
            best[1] = score[1];
            best[2] = score[2];
        }
    }
}

static bool same_references(const cappy_item *a, const cappy_item *b)
{
    return a->references == b->references && a->reference_count == b->reference_count;
}

cappy_status cappy_rouge_l_pairs(const cappy_item *items, size_t count, bool stem, double *scores)
{
    bounds most = {0};
    workspace work = {0};
    cappy_status status = measure(items, count, &most);
    if (status == CAPPY_OK)
        status = allocate(&work, &most);
    for (size_t i = 0; status == CAPPY_OK && i < count; i++) {
        const cappy_item *item = &items[i];
        if (i == 0 || !same_references(item, item - 1))
            read_references(&work, item->references, item->reference_count, stem);
        const size_t length =
            cappy_read_words(&work.vocabulary, item->prediction, stem, false, work.prediction_ids);
        score_item(&work, item->reference_count, length, scores + 3 * i);
    }
    release(&work);
    return status;
}

cappy_status cappy_rouge_l_matrix(const cappy_text *texts, size_t count, size_t first_row, size_t row_step, bool stem,
                                  double *fmeasures)
{
    const cappy_item all = {.references = texts, .reference_count = count};
    bounds most = {0};
    workspace work = {0};
    cappy_status status = measure(&all, 1, &most);
    if (status == CAPPY_OK)
        status = allocate(&work, &most);
    if (status == CAPPY_OK)
        read_references(&work, texts, count, stem);
    for (size_t row = first_row; status == CAPPY_OK && row < count; row += row_step) {
        const size_t start = reference_start(&work, row);
        const size_t length = work.reference_ends[row] - start;
        for (size_t column = row; column < count; column++) {
            double score[3];
            score_reference(&work, column, work.reference_ids + start, length, score);
            /* p * r and p + r don't depend on which text is called the reference, so one number serves both cells. */
            fmeasures[row * count + column] = fmeasures[column * count + row] = score[2];
        }
    }
    release(&work);
    return status;
}
