/* Rouge-L of sequences, a batch in one call. */
#include <stdlib.h>

#include "parts.h"

/* Some hundredths of a second. */
#define STEPS_BETWEEN_WATCHES ((size_t)1 << 24)

cappy_space *cappy_space_new(cappy_watch watch)
{
    cappy_space *space = calloc(1, sizeof *space);
    if (space)
        space->watch = watch;
    return space;
}

void cappy_space_free(cappy_space *space)
{
    if (space == NULL)
        return;
    cappy_buffer *buffers[] = {&space->masks, &space->common[0], &space->common[1], &space->strip,
                               &space->carries, &space->lanes, &space->rows, &space->hits,
                               &space->counts[0], &space->counts[1]};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        cappy_buffer_free(buffers[i]);
    free(space);
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

/* In rouge-score's own order of operations; 0 without a common word. */
void cappy_score(size_t common, size_t prediction_length, size_t reference_length, double scores[3])
{
    scores[0] = scores[1] = scores[2] = 0.0;
    if (common == 0)
        return;
    const double precision = (double)common / (double)prediction_length;
    const double recall = (double)common / (double)reference_length;
    scores[0] = precision;
    scores[1] = recall;
    scores[2] = 2 * precision * recall / (precision + recall);
}

cappy_status cappy_rouge_l_pairs(cappy_space *space, const cappy_sequence *predictions,
                                 const cappy_sequence *references, size_t count, cappy_id bound, double *scores)
{
    if (!cappy_buffer_reserve(&space->masks, bound, sizeof(uint64_t)))
        return CAPPY_NO_MEMORY;
    space->status = CAPPY_OK;
    for (size_t i = 0; i < count && cappy_goes_on(space, predictions[i].length + references[i].length); i++) {
        const size_t lcs = cappy_lcs(space, predictions[i], references[i]);
        cappy_score(lcs, predictions[i].length, references[i].length, scores + 3 * i);
    }
    cappy_lay(space, (cappy_sequence){0});
    return space->status;
}

/* A block of rows of the matrix, from the diagonal on. */
static void score_rows(cappy_space *space, const cappy_sequence *sequences, size_t count, size_t first_row,
                       double *fmeasures)
{
    const cappy_sequence *rows = sequences + first_row;
    const size_t row_count = count - first_row < CAPPY_MATRIX_ROWS ? count - first_row : CAPPY_MATRIX_ROWS;
    cappy_lanes_lay(space->lanes.bytes, rows, row_count);
    for (size_t column = first_row; column < count; column++) {
        const cappy_sequence text = sequences[column];
        size_t lengths[CAPPY_MATRIX_ROWS];
        if (!cappy_goes_on(space, CAPPY_MATRIX_ROWS * (text.length + 1)))
            break;
        cappy_lanes_lcs(space->lanes.bytes, text, lengths);
        for (size_t k = 0; k < row_count; k++) {
            double scores[3];
            if (rows[k].length > CAPPY_WORD_BITS)
                lengths[k] = cappy_lcs(space, rows[k], text);
            /* The F-measure is the same whichever text is called the reference. */
            cappy_score(lengths[k], rows[k].length, text.length, scores);
            fmeasures[(first_row + k) * count + column] = fmeasures[column * count + first_row + k] = scores[2];
        }
    }
    cappy_lanes_lift(space->lanes.bytes, rows, row_count);
}

cappy_status cappy_rouge_l_matrix(cappy_space *space, const cappy_sequence *sequences, size_t count,
                                  size_t first_block, size_t block_step, cappy_id bound, double *fmeasures)
{
    if (!cappy_buffer_reserve(&space->masks, bound, sizeof(uint64_t)) ||
        !cappy_buffer_reserve(&space->lanes, bound, sizeof(cappy_lanes)))
        return CAPPY_NO_MEMORY;
    space->status = CAPPY_OK;
    for (size_t block = first_block; block * CAPPY_MATRIX_ROWS < count && cappy_goes_on(space, 0);
         block += block_step)
        score_rows(space, sequences, count, block * CAPPY_MATRIX_ROWS, fmeasures);
    cappy_lay(space, (cappy_sequence){0});
    return space->status;
}
