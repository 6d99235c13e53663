/* Rouge-L of sequences, a batch in one call. */
#include <stdlib.h>
#include <string.h>

#include "masks.h"
#include "parts.h"

/* Some hundredths of a second. */
#define STEPS_BETWEEN_WATCHES ((size_t)1 << 24)

#define BATCH_PAIRS ((size_t)256)
#define BATCH_BYTES ((size_t)1 << 16)

cappy_space *cappy_space_new(cappy_watch watch)
{
    cappy_space *space = calloc(1, sizeof *space);
    if (space)
        *space = (cappy_space){.watch = watch, .has_masks = cappy_has_masks()};
    return space;
}

#define BUFFERS 12

static void list_buffers(cappy_space *space, cappy_buffer *buffers[BUFFERS])
{
    cappy_buffer *all[BUFFERS] = {&space->masks,   &space->strip, &space->common[0], &space->common[1],
                                  &space->carries, &space->lanes, &space->rows,      &space->hits,
                                  &space->counts[0], &space->counts[1], &space->read[0],   &space->read[1]};
    memcpy(buffers, all, sizeof all);
}

void cappy_space_free(cappy_space *space)
{
    if (space == NULL)
        return;
    cappy_buffer *buffers[BUFFERS];
    list_buffers(space, buffers);
    for (int i = 0; i < BUFFERS; i++)
        cappy_buffer_free(buffers[i]);
    free(space);
}

size_t cappy_space_bytes(cappy_space *space)
{
    cappy_buffer *buffers[BUFFERS];
    list_buffers(space, buffers);
    size_t size = 0;
    for (int i = 0; i < BUFFERS; i++)
        size += buffers[i]->size;
    return size;
}

bool cappy_reserve(cappy_space *space, cappy_buffer *buffer, size_t count, size_t element_size)
{
    if (!cappy_buffer_reserve(buffer, count, element_size))
        space->status = CAPPY_NO_MEMORY;
    return space->status == CAPPY_OK;
}

bool cappy_begin(cappy_space *space, cappy_id bound)
{
    space->status = CAPPY_OK;
    return cappy_reserve(space, &space->masks, bound, sizeof(uint64_t)) &&
           cappy_reserve(space, &space->strip, CAPPY_STRIP_WORDS * CAPPY_WORD_BITS + 1,
                         CAPPY_STRIP_WORDS * sizeof(uint64_t));
}

bool cappy_goes_on(cappy_space *space, size_t steps)
{
    space->steps += steps;
    if (space->steps >= STEPS_BETWEEN_WATCHES) {
        space->steps = 0;
        if (space->status == CAPPY_OK && space->watch.stop(space->watch.context))
            space->status = CAPPY_STOPPED;
    }
    return space->status == CAPPY_OK;
}

void cappy_score(size_t common, size_t prediction_length, size_t reference_length, double scores[3])
{
    scores[0] = scores[1] = scores[2] = 0.0;
    if (common == 0)
        return;
    scores[0] = (double)common / (double)prediction_length;
    scores[1] = (double)common / (double)reference_length;
    scores[2] = cappy_fmeasure((double)common, (double)prediction_length, (double)reference_length);
}

cappy_status cappy_rouge_l_pairs(cappy_space *space, const cappy_sequence *predictions,
                                 const cappy_sequence *references, size_t count, cappy_id bound, double *scores)
{
    if (!cappy_begin(space, bound))
        return space->status;
    for (size_t i = 0; i < count && cappy_goes_on(space, predictions[i].length + references[i].length); i++) {
        const size_t lcs = cappy_lcs(space, predictions[i], references[i]);
        cappy_score(lcs, predictions[i].length, references[i].length, scores + 3 * i);
    }
    cappy_lay(space, (cappy_sequence){0});
    return space->status;
}

/* How many pairs from `first` on are read before they are scored: as many as leave the processor's nearest memory some
 * room, and at least one. */
static size_t batch_of(const cappy_text *predictions, const cappy_text *references, size_t first, size_t count)
{
    size_t size = 0, end = first;
    while (end < count && end - first < BATCH_PAIRS && size < BATCH_BYTES) {
        size += predictions[end].length + references[end].length;
        end++;
    }
    return end - first;
}

static bool read_batch(cappy_space *space, cappy_buffer *buffer, cappy_lexicon *lexicon, const cappy_text *texts,
                       size_t count, cappy_sequence *sequences)
{
    size_t bound = 0;
    for (size_t i = 0; i < count; i++)
        bound += cappy_word_bound(texts[i].length);
    if (cappy_reserve(space, buffer, bound, sizeof(cappy_id)))
        space->status = cappy_read(lexicon, texts, count, buffer->bytes, sequences);
    return space->status == CAPPY_OK;
}

cappy_status cappy_rouge_l_texts(cappy_space *space, cappy_lexicon *lexicon, const cappy_text *predictions,
                                 const cappy_text *references, size_t count, double *scores)
{
    cappy_sequence some[BATCH_PAIRS], others[BATCH_PAIRS];
    space->status = CAPPY_OK;
    for (size_t first = 0, size; first < count && space->status == CAPPY_OK; first += size) {
        size = batch_of(predictions, references, first, count);
        if (read_batch(space, &space->read[0], lexicon, predictions + first, size, some) &&
            read_batch(space, &space->read[1], lexicon, references + first, size, others))
            cappy_rouge_l_pairs(space, some, others, size, cappy_lexicon_bound(lexicon), scores + 3 * first);
    }
    return space->status;
}

/* A block of rows of the matrix, from the diagonal on. */
static void score_rows(cappy_space *space, const cappy_sequence *sequences, size_t count, size_t first, double *fmeasures)
{
    const size_t rows = count - first < CAPPY_MATRIX_ROWS ? count - first : CAPPY_MATRIX_ROWS;
    double lengths[CAPPY_MATRIX_ROWS] = {0};
    for (size_t k = 0; k < rows; k++)
        lengths[k] = (double)sequences[first + k].length;
    cappy_lanes_lay(space->lanes.bytes, sequences + first, rows);
    for (size_t column = first; column < count; column++) {
        double scores[CAPPY_MATRIX_ROWS];
        if (!cappy_goes_on(space, CAPPY_MATRIX_ROWS * (sequences[column].length + CAPPY_MATRIX_ROWS)))
            break;
        cappy_lanes_score(space->lanes.bytes, lengths, sequences[column], scores);
        for (size_t k = 0; k < rows; k++)
            fmeasures[(first + k) * count + column] = fmeasures[column * count + first + k] = scores[k];
    }
    cappy_lanes_lift(space->lanes.bytes, sequences + first, rows);
}

/* A row of the matrix, from the diagonal on. */
static void score_row(cappy_space *space, const cappy_sequence *sequences, size_t count, size_t row, double *fmeasures)
{
    for (size_t column = row; column < count; column++) {
        double scores[3];
        if (!cappy_goes_on(space, sequences[row].length + sequences[column].length))
            break;
        const size_t lcs = cappy_lcs(space, sequences[column], sequences[row]);
        cappy_score(lcs, sequences[column].length, sequences[row].length, scores);
        fmeasures[row * count + column] = fmeasures[column * count + row] = scores[2];
    }
}

cappy_status cappy_rouge_l_matrix(cappy_space *space, const cappy_sequence *sequences, size_t count,
                                  size_t first_block, size_t block_step, cappy_id bound, double *fmeasures)
{
    if (!cappy_begin(space, bound) || !cappy_reserve(space, &space->lanes, bound, CAPPY_MATRIX_ROWS * sizeof(uint64_t)))
        return space->status;
    for (size_t first = first_block * CAPPY_MATRIX_ROWS; first < count; first += block_step * CAPPY_MATRIX_ROWS) {
        score_rows(space, sequences, count, first, fmeasures);
        for (size_t row = first; row < count && row < first + CAPPY_MATRIX_ROWS; row++)
            if (sequences[row].length > CAPPY_WORD_BITS)
                score_row(space, sequences, count, row, fmeasures);
    }
    cappy_lay(space, (cappy_sequence){0});
    return space->status;
}
