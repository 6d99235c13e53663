/* The scorer's operators at each level of instructions that this processor has: the same to the last bit, and what
 * plain code in double precision says to within its own error. `.ci/run` builds it under the sanitizers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "level.h"

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define MOST_SEGMENTS 40

/* Levels, and units of the same numbers; AMX is one unit more, of the last level. */
static const cappy_level *levels[4];
static const cappy_unit *units[4];
static size_t level_count, unit_count;

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    REQUIRE(memory);
    return memory;
}

static uint32_t state = 1;

static uint32_t below(uint32_t limit)
{
    state = state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)state * limit) >> 32);
}

/* From -most to most. */
static float *random_numbers(size_t count, float most)
{
    float *numbers = allocate(count, sizeof *numbers);
    for (size_t i = 0; i < count; i++)
        numbers[i] = most * ((float)below(20001) - 10000.0f) / 10000.0f;
    return numbers;
}

static void check_code(double expected, float gain, float zero_point, uint8_t code)
{
    const double exact = fmin(fmax(expected * gain + zero_point, 0), 255);
    REQUIRE(fabs(exact - code) < 0.51);
}

static float largest_magnitude(const float *numbers, size_t count, size_t stride)
{
    float most = 1e-30f;
    for (size_t i = 0; i < count; i++)
        most = fmaxf(most, fabsf(numbers[i * stride]));
    return most;
}

/* ---- Attention ---- */

/* An instruction and candidates, or candidates beside a context, or two instructions with their candidates. */
static size_t random_segments(cappy_segment *segments, cappy_span *spans, size_t context, bool scores_alone,
                              int64_t *queries)
{
    const size_t groups = context ? 1 : 1 + below(2), longest = below(3) ? 12 : 70;
    size_t count = 0;
    int64_t token = 0;
    *queries = 0;
    for (size_t group = 0; group < groups; group++) {
        int64_t first = 0, end = (int64_t)context;
        const size_t candidates = below(MOST_SEGMENTS / 2 - 1);
        for (size_t i = context ? 1 : 0; i <= candidates; i++) {
            const int64_t length = 1 + (int64_t)below((uint32_t)(i ? longest : 90));
            segments[count] = (cappy_segment){token, token + length, i ? first : 0, i ? end : 0};
            const int64_t asked = scores_alone ? i > 0 : length;
            spans[count] = (cappy_span){*queries, *queries + asked};
            *queries += asked;
            if (i == 0) {
                first = token;
                end = token + length;
            }
            token += length;
            count++;
        }
    }
    return count;
}

/* A number that is read in codes of `middle` plus or minus `reach`, as the largest of its kin is. */
static double coded(float number, float most, float reach, float middle)
{
    return ((double)rintf(fmaf(number, reach / most, middle)) - middle) * (most / reach);
}

/* What a query sees: weights of the keys, and their values, [size][seen]; of codes, as attention in bytes reads them, or
 * as they are. Returns how many there are. */
static size_t look(const cappy_attention *task, bool in_bytes, size_t s, size_t q, size_t head, double *weights,
                   double *values)
{
    const size_t hidden = task->hidden, size = hidden / task->heads;
    const cappy_segment one = task->segments[s];
    const size_t context = (size_t)(one.context_end - one.context_first), count = (size_t)(one.end - one.first);
    const float *query = task->query + q * hidden + head * size;
    const float most = largest_magnitude(query, size, 1);
    double greatest = -INFINITY;
    for (size_t k = 0; k < context + count; k++) {
        const bool own = k >= context;
        const float *row = own ? task->key_value + ((size_t)one.first + k - context) * 2 * hidden
                               : task->context + ((size_t)one.context_first + k) * 2 * hidden;
        const float *key = row + head * size;
        const float most_key = largest_magnitude(key, size, 1);
        const size_t place = context + q - (size_t)task->spans[s].first;
        const bool hidden_by_window = task->window && (k > place ? k - place : place - k) > task->window;
        double logit = hidden_by_window ? -INFINITY : 0;
        for (size_t i = 0; i < size; i++)
            logit += in_bytes ? coded(query[i], most, 127, 128) * coded(key[i], most_key, 63, 0)
                              : (double)query[i] * key[i];
        weights[k] = logit / sqrt((double)size);
        greatest = fmax(greatest, weights[k]);
        for (size_t i = 0; i < size; i++)
            values[i * (context + count) + k] = key[hidden + i];
    }
    for (size_t k = 0; k < context + count; k++) {
        weights[k] = exp(weights[k] - greatest);
        if (in_bytes)
            weights[k] = rint(65535 * weights[k]);
    }
    for (size_t i = 0; in_bytes && i < size; i++)
        for (size_t own = 0; own < 2; own++) {
            double *column = values + i * (context + count) + (own ? context : 0);
            float kin[200];
            for (size_t k = 0; k < (own ? count : context); k++)
                kin[k] = (float)column[k];
            const float most_value = largest_magnitude(kin, own ? count : context, 1);
            for (size_t k = 0; k < (own ? count : context); k++)
                column[k] = coded(kin[k], most_value, 63, 0);
        }
    return context + count;
}

static void check_attention(const cappy_attention *task, const float *numbers, const uint8_t *codes)
{
    const size_t hidden = task->hidden, size = hidden / task->heads, longest = task->longest_shared + task->longest_own;
    double *weights = allocate(longest, sizeof *weights), *values = allocate(size * longest, sizeof *values);
    for (size_t s = 0; s < task->segment_count; s++)
        for (size_t q = (size_t)task->spans[s].first; q < (size_t)task->spans[s].end; q++)
            for (size_t head = 0; head < task->heads; head++) {
                const size_t seen = look(task, codes != NULL, s, q, head, weights, values);
                for (size_t i = 0; i < size; i++) {
                    double total = 0, sum = 0;
                    for (size_t k = 0; k < seen; k++) {
                        total += weights[k];
                        sum += weights[k] * values[i * seen + k];
                    }
                    const size_t column = head * size + i, at = q * hidden + column;
                    if (codes)
                        check_code(sum / total, task->quantisation.gain[column], task->quantisation.zero_point,
                                   codes[at]);
                    else
                        REQUIRE(fabs(numbers[at] - sum / total) < 2e-5);
                }
            }
    free(weights);
    free(values);
}

/* Scratch memory as large as it must be, and full of what mustn't matter. */
static void *used_scratch(size_t size)
{
    void *scratch = aligned_alloc(64, cappy_deep(size));
    REQUIRE(scratch);
    return memset(scratch, 0xA5, size);
}

static void test_attention(size_t heads, size_t size, bool beside, bool scores_alone, size_t window)
{
    const size_t hidden = heads * size, kept = beside ? 1 + below(80) : 0;
    cappy_segment segments[MOST_SEGMENTS];
    cappy_span spans[MOST_SEGMENTS];
    int64_t queries;
    const size_t count = random_segments(segments, spans, kept, scores_alone, &queries);
    const size_t tokens = count ? (size_t)segments[count - 1].end : 0, asked = (size_t)queries;
    float *query = random_numbers(asked * hidden, 2), *key_value = random_numbers(tokens * 2 * hidden, 3);
    float *context = random_numbers(kept * 2 * hidden, 3), *gain = random_numbers(hidden, 30);
    cappy_attention task = {
        .query = query,
        .key_value = key_value,
        .context = beside ? context : key_value,
        .segments = segments,
        .spans = spans,
        .segment_count = count,
        .hidden = hidden,
        .heads = heads,
        .window = window,
        .quantisation = {gain, 131},
    };
    for (size_t i = 0; i < count; i++)
        cappy_measure(&task, segments[i]);
    float *numbers[3];
    for (size_t level = 0; level < level_count; level++) {
        void *scratch = used_scratch(cappy_attention_scratch(&task));
        task.numbers = numbers[level] = allocate(asked * hidden, sizeof(float));
        for (size_t head = 0; head < heads; head++)
            levels[level]->attend(&task, head, scratch);
        REQUIRE(memcmp(numbers[level], numbers[0], asked * hidden * sizeof(float)) == 0);
        free(scratch);
    }
    check_attention(&task, numbers[0], NULL);
    for (size_t level = 0; level < level_count; level++)
        free(numbers[level]);
    task.window = 0; /* attention in bytes has none */
    uint8_t *codes[4];
    for (size_t unit = 0; unit < unit_count; unit++) {
        void *scratch = used_scratch(cappy_attention_in_bytes_scratch(&task));
        task.codes = codes[unit] = allocate(asked * hidden, 1);
        task.unit = units[unit];
        for (size_t head = 0; head < heads; head++)
            levels[unit]->attend_in_bytes(&task, head, scratch);
        REQUIRE(memcmp(codes[unit], codes[0], asked * hidden) == 0);
        free(scratch);
    }
    check_attention(&task, NULL, codes[0]);
    for (size_t unit = 0; unit < unit_count; unit++)
        free(codes[unit]);
    free(query);
    free(key_value);
    free(context);
    free(gain);
}

/* ---- Rows ---- */

static void test_rows(size_t rows, size_t width, bool sum_of_two)
{
    float *states = random_numbers(rows * width, 6), *added = random_numbers(rows * width, 6);
    float *gain = random_numbers(width, 2), *bias = random_numbers(width, 1), *code_gain = random_numbers(width, 40);
    const cappy_quantisation how = {code_gain, 100};
    float *numbers[3];
    uint8_t *codes[3];
    for (size_t level = 0; level < level_count; level++) {
        numbers[level] = allocate(rows * width, sizeof(float));
        codes[level] = allocate(rows * width, 1);
        const cappy_norm norm = {
            states, sum_of_two ? added : NULL, gain, bias, width, 1e-5f, numbers[level], codes[level], how};
        levels[level]->norm_rows(&norm, 0, rows / 2);
        levels[level]->norm_rows(&norm, rows / 2, rows);
        REQUIRE(memcmp(numbers[level], numbers[0], rows * width * sizeof(float)) == 0);
        REQUIRE(memcmp(codes[level], codes[0], rows * width) == 0);
    }
    for (size_t row = 0; row < rows; row++) {
        double sum = 0, squares = 0;
        for (size_t i = row * width; i < (row + 1) * width; i++)
            sum += (double)states[i] + (sum_of_two ? added[i] : 0);
        const double mean = sum / (double)width;
        for (size_t i = row * width; i < (row + 1) * width; i++)
            squares += pow((double)states[i] + (sum_of_two ? added[i] : 0) - mean, 2);
        for (size_t i = 0; i < width; i++) {
            const size_t at = row * width + i;
            const double value = (double)states[at] + (sum_of_two ? added[at] : 0);
            const double normed = (value - mean) / sqrt(squares / (double)width + 1e-5) * gain[i] + bias[i];
            REQUIRE(fabs(numbers[0][at] - normed) < 1e-5);
            check_code(normed, code_gain[i], how.zero_point, codes[0][at]);
        }
    }
    for (size_t level = 0; level < level_count; level++) {
        free(numbers[level]);
        free(codes[level]);
    }
    free(states);
    free(added);
    free(gain);
    free(bias);
    free(code_gain);
}

static void test_embeddings(size_t rows, size_t width)
{
    float *gain = random_numbers(width, 2), *bias = random_numbers(width, 1), *code_gain = random_numbers(width, 40);
    cappy_embedding task = {.norm = {.gain = gain, .bias = bias, .hidden = width, .epsilon = 1e-5f}};
    int8_t *tables[CAPPY_TABLES];
    float *scales[CAPPY_TABLES], *sums = allocate(rows * width, sizeof(float));
    int64_t *ids[CAPPY_TABLES];
    for (size_t t = 0; t < CAPPY_TABLES; t++) {
        const uint32_t entries = 1 + below(9);
        tables[t] = allocate(entries * width, 1);
        for (size_t i = 0; i < entries * width; i++)
            tables[t][i] = (int8_t)((int)below(255) - 127);
        scales[t] = random_numbers(entries, 0.05f);
        ids[t] = allocate(rows, sizeof(int64_t));
        for (size_t row = 0; row < rows; row++) {
            ids[t][row] = below(entries);
            for (size_t i = 0; i < width; i++)
                sums[row * width + i] += (float)tables[t][(size_t)ids[t][row] * width + i] * scales[t][ids[t][row]];
        }
        task.tables[t] = (cappy_table){tables[t], scales[t], ids[t]};
    }
    /* The same as normalising their sums. */
    const cappy_quantisation how = {code_gain, 100};
    float *expected = allocate(rows * width, sizeof(float)), *numbers = allocate(rows * width, sizeof(float));
    uint8_t *expected_codes = allocate(rows * width, 1), *codes = allocate(rows * width, 1);
    const cappy_norm norm = {sums, NULL, gain, bias, width, 1e-5f, expected, expected_codes, how};
    levels[0]->norm_rows(&norm, 0, rows);
    task.norm.states = task.norm.numbers = numbers;
    task.norm.codes = codes;
    task.norm.quantisation = how;
    for (size_t level = 0; level < level_count; level++) {
        memset(codes, 0, rows * width);
        levels[level]->embed_rows(&task, 0, rows / 2);
        levels[level]->embed_rows(&task, rows / 2, rows);
        REQUIRE(memcmp(numbers, expected, rows * width * sizeof(float)) == 0);
        REQUIRE(memcmp(codes, expected_codes, rows * width) == 0);
    }
    for (size_t t = 0; t < CAPPY_TABLES; t++) {
        free(tables[t]);
        free(scales[t]);
        free(ids[t]);
    }
    free(sums);
    free(expected);
    free(numbers);
    free(expected_codes);
    free(codes);
    free(gain);
    free(bias);
    free(code_gain);
}

/* ---- Linear layers ---- */

static void multiply_all(const cappy_linear *task, const cappy_level *level)
{
    /* In parts, as threads share them. */
    for (size_t row = 0; row < task->rows; row += CAPPY_LINEAR_ROWS)
        for (size_t column = 0; column < task->columns; column += 96) {
            const size_t rows = row + CAPPY_LINEAR_ROWS < task->rows ? CAPPY_LINEAR_ROWS : task->rows - row;
            level->linear_part(task, row, rows, column, column + 96 < task->columns ? column + 96 : task->columns);
        }
}

static void test_linear(size_t rows, size_t inner, size_t columns)
{
    uint8_t *in = allocate(rows * inner, 1);
    int8_t *weight = allocate(inner * columns, 1);
    int32_t *bias = allocate(columns, sizeof *bias);
    float *scales = random_numbers(columns, 1e-3f), *code_gain = random_numbers(columns, 40);
    /* The extremes often: sums of two products must fit where they are added up. */
    for (size_t i = 0; i < rows * inner; i++)
        in[i] = below(3) ? (uint8_t)below(256) : 255;
    for (size_t i = 0; i < inner * columns; i++)
        weight[i] = (int8_t)(below(3) ? (int)below(127) - 63 : below(2) ? 63 : -63);
    for (size_t i = 0; i < columns; i++)
        bias[i] = (int32_t)below(200001) - 100000;
    cappy_linear task = {.codes = in,
                         .rows = rows,
                         .inner = inner,
                         .columns = columns,
                         .weight = weight,
                         .scales = scales,
                         .bias = bias};
    float *numbers[4] = {NULL};
    uint8_t *codes[4] = {NULL};
    for (size_t unit = 0; unit < unit_count; unit++) {
        if (inner % units[unit]->step)
            continue;
        task.unit = units[unit];
        task.numbers = numbers[unit] = allocate(rows * columns, sizeof(float));
        multiply_all(&task, levels[unit]);
        task.codes_out = codes[unit] = allocate(rows * columns, 1);
        task.quantisation = (cappy_quantisation){code_gain, 90};
        multiply_all(&task, levels[unit]);
        task.codes_out = NULL;
        REQUIRE(memcmp(numbers[unit], numbers[0], rows * columns * sizeof(float)) == 0);
        REQUIRE(memcmp(codes[unit], codes[0], rows * columns) == 0);
    }
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++) {
            int64_t sum = bias[column];
            for (size_t i = 0; i < inner; i++)
                sum +=
                    in[row * inner + i] * weight[((column / 16 * (inner / 4) + i / 4) * 16 + column % 16) * 4 + i % 4];
            const float expected = (float)sum * scales[column];
            REQUIRE(numbers[0][row * columns + column] == expected);
            check_code(expected * 0.5 * erfc(-expected / sqrt(2)), code_gain[column], 90,
                       codes[0][row * columns + column]);
        }
    for (size_t unit = 0; unit < unit_count; unit++) {
        free(numbers[unit]);
        free(codes[unit]);
    }
    free(in);
    free(weight);
    free(bias);
    free(scales);
    free(code_gain);
}

int main(void)
{
    levels[level_count++] = &cappy_level_plain;
#ifdef CAPPY_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        levels[level_count++] = &cappy_level_avx2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        levels[level_count++] = &cappy_level_avx512;
#endif
    for (; unit_count < level_count; unit_count++)
        units[unit_count] = &levels[unit_count]->unit;
#ifdef CAPPY_AMX
    if (level_count == 3 && cappy_has_tiles()) {
        levels[unit_count] = levels[level_count - 1];
        units[unit_count++] = &cappy_unit_amx;
    }
#endif
    static const size_t SIZES[] = {4, 16, 20, 32, 48, 64};
    for (size_t round = 0; round < 60; round++)
        test_attention(1 + below(3), SIZES[below(6)], below(2), below(2), 0);
    for (size_t round = 0; round < 40; round++)
        test_attention(1 + below(3), SIZES[below(6)], below(2), false, 1 + below(below(2) ? 8 : 120));
    for (size_t round = 0; round < 20; round++)
        test_rows(below(40), 16 * (1 + below(30)), below(2));
    for (size_t round = 0; round < 20; round++)
        test_embeddings(below(40), 16 * (1 + below(30)));
    for (size_t round = 0; round < 40; round++)
        test_linear(below(70), below(2) ? 64 * (1 + below(8)) : 4 * (1 + below(40)), 16 * (1 + below(12)));
    printf("%zu levels and units agree\n", unit_count);
    return 0;
}
