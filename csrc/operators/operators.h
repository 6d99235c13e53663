/* What the scorer's network consists of, each operator in one pass over its rows. A row's result depends on nothing but
 * what it is made of: not on the number of rows, on their order, or on the number of threads. */
#ifndef CAPPY_OPERATORS_H
#define CAPPY_OPERATORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How numbers become bytes: rounded x * gain + zero_point, by column. */
typedef struct {
    const float *gain;
    float zero_point;
} cappy_quantisation;

/* Codes (rows, inner) times weights of 7 bits, 4 of the inner dimension for each of a tile's 16 columns:
 * [tiles][inner / 4][16][4]. `inner` is divisible by 4; so that it may be read in whole steps of the unit, zeros follow
 * it among the weights, and anything among the codes. */
typedef struct {
    const uint8_t *codes;
    size_t code_stride; /* from row to row */
    const int8_t *weight;
    size_t tile_stride;
    size_t rows, inner, tiles;
    int32_t *sums; /* (rows, 16 * tiles) */
    size_t sum_stride;
} cappy_product;

typedef void cappy_multiply(const cappy_product *task);

/* What multiplies matrices: of up to 32 rows between begin and end, where it has them. Of products begun with more than
 * 16 rows, some may have just 16. */
typedef struct {
    cappy_multiply *multiply;
    void (*begin)(size_t rows);
    void (*end)(void);
    size_t step; /* in which the inner dimension is read */
} cappy_unit;

/* A segment of tokens: those from `first` on sees the tokens of its context, and itself. */
typedef struct {
    int64_t first, end, context_first, context_end;
} cappy_segment;

/* The rows of queries that belong to a segment. */
typedef struct {
    int64_t first, end;
} cappy_span;

typedef struct {
    const float *query;     /* (queries, hidden) */
    const float *key_value; /* (tokens, 2 * hidden) */
    const float *context;   /* the rows that contexts are of: those of another call, or key_value */
    const cappy_segment *segments;
    const cappy_span *spans; /* as many */
    size_t segment_count;
    size_t hidden, heads;
    size_t window; /* how many places a query sees to either side, if all tokens of a segment ask; 0: all */
    size_t longest_shared, longest_own; /* see cappy_measure */
    float *numbers;                     /* (queries, hidden): the result */
    uint8_t *codes;                     /* (queries, hidden): that of attention in bytes, by such a unit */
    const cappy_unit *unit;
    cappy_quantisation quantisation;
} cappy_attention;

/* A length in whole vectors; and one in whole steps of any unit, or cache lines. */
static inline size_t cappy_padded(size_t length) { return (length + 15) / 16 * 16; }
static inline size_t cappy_deep(size_t length) { return (length + 63) / 64 * 64; }

/* Counts a segment in: what is kept at hand is what its queries share with others, its context, or itself if it has
 * none; and itself besides a context. */
static inline void cappy_measure(cappy_attention *task, cappy_segment one)
{
    const size_t own = (size_t)(one.end - one.first), context = (size_t)(one.context_end - one.context_first);
    const size_t shared = context ? context : own;
    task->longest_shared = shared > task->longest_shared ? shared : task->longest_shared;
    task->longest_own = context && own > task->longest_own ? own : task->longest_own;
}

/* What the queries gather from the values that they see, for one head; in aligned scratch memory. */
typedef void cappy_attend(const cappy_attention *task, size_t head, void *scratch);

/* Queries that go through the keys together, at any level. */
#define CAPPY_MOST_QUERIES 8
#define CAPPY_CODED_QUERIES 16

/* Bytes of scratch memory for a head: for keys, values, and what a block of queries comes to. */
static inline size_t cappy_attention_scratch(const cappy_attention *task)
{
    const size_t size = cappy_padded(task->hidden / task->heads);
    const size_t longest = cappy_padded(task->longest_shared) + cappy_padded(task->longest_own);
    return (2 * size * longest + CAPPY_MOST_QUERIES * (2 * size + longest)) * sizeof(float);
}

/* The same for attention in bytes. */
static inline size_t cappy_attention_in_bytes_scratch(const cappy_attention *task)
{
    const size_t size = task->hidden / task->heads, padded_size = cappy_padded(size), deep_size = cappy_deep(size);
    const size_t padded = cappy_padded(task->longest_shared) + cappy_padded(task->longest_own);
    const size_t deep = cappy_deep(task->longest_shared) + cappy_deep(task->longest_own);
    const size_t tokens = padded * (deep_size + 2 * sizeof(float)) + padded_size * (deep + 2 * sizeof(float));
    const size_t query = 2 * deep_size + (padded + 3 * padded_size) * sizeof(float) + 2 * deep;
    return tokens + CAPPY_CODED_QUERIES * query;
}

/* The widest window. */
#define CAPPY_MOST_PLACES 1000000000

/* In bytes, what a query sees: weights have 16 bits, and sums of them 31. */
#define CAPPY_MOST_SEEN 32767

typedef struct {
    const float *states, *added; /* (rows, hidden); `added` may be NULL, and `states` be `numbers` */
    const float *gain, *bias;    /* (hidden,) */
    size_t hidden;
    float epsilon;
    float *numbers; /* (rows, hidden) */
    uint8_t *codes; /* the same in bytes, unless NULL */
    cappy_quantisation quantisation;
} cappy_norm;

/* A linear layer of 8-bit inputs and 7-bit weights, inner % 4 == 0 and columns % 16 == 0. */
typedef struct {
    const uint8_t *codes; /* (rows, inner) */
    size_t rows, inner, columns;
    const int8_t *weight; /* [columns / 16][inner / 4][16][4] */
    const float *scales;  /* (columns,): what one of the sums' units is worth */
    const int32_t *bias;  /* (columns,): in these units, less what the codes' zero point adds to the sums */
    float *numbers;       /* (rows, columns): the result, or */
    uint8_t *codes_out;   /* its gelu in bytes */
    const cappy_unit *unit;
    cappy_quantisation quantisation;
} cappy_linear;

#define CAPPY_LINEAR_ROWS 32

/* The result's rows, up to CAPPY_LINEAR_ROWS, and columns from `row` and `column` on; columns in whole 16s. */
typedef void cappy_linear_part(const cappy_linear *task, size_t row, size_t rows, size_t column, size_t end_column);

typedef void cappy_norm_rows(const cappy_norm *task, size_t first, size_t end);

/* Embeddings in 8 bits, with a scale a row, and the row that each token has. */
typedef struct {
    const int8_t *codes;
    const float *scales;
    const int64_t *ids;
} cappy_table;

#define CAPPY_TABLES 3 /* of words, positions and token types */

typedef struct {
    cappy_table tables[CAPPY_TABLES];
    cappy_norm norm; /* of their sums, whose place is its `numbers` */
} cappy_embedding;

typedef void cappy_embed_rows(const cappy_embedding *task, size_t first, size_t end);

#endif
