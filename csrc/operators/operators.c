/* The operators as ONNX Runtime calls them: what a graph gives is checked here, and its threads share the work. */
#include "operators.h"

#include <stdlib.h>
#include <string.h>

#include "level.h"
#include "ort.h"
#include "threads.h"

#define DOMAIN "cappy"
#define MOST_DIMENSIONS 4
#define CACHE_LINE 64
#define ROWS_A_PART 16
#define STACK_SCRATCH ((size_t)192 << 10) /* bytes: enough for an instruction of 512 tokens */

typedef struct {
    const void *data;
    int64_t shape[MOST_DIMENSIONS];
    size_t rank;
} tensor;

typedef struct {
    const ort_api *api;
    const cappy_level *level;
    const cappy_unit *unit;
    int64_t heads, layer, window;
    float epsilon;
} kernel;

/* Ends the function that it stands in if a call failed. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        ort_status *failed = (call);                                                                                   \
        if (failed)                                                                                                    \
            return failed;                                                                                             \
    } while (0)

#define REQUIRE(kernel, condition)                                                                                     \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return ort_create_status((kernel)->api)(ORT_INVALID_ARGUMENT, "cappy: not so: " #condition);               \
    } while (0)

static const cappy_level *best_level(void)
{
#if defined(CAPPY_X86) && !defined(CAPPY_NO_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        return &cappy_level_avx512;
#endif
#ifdef CAPPY_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &cappy_level_avx2;
#endif
    return &cappy_level_plain;
}

static const cappy_unit *best_unit(const cappy_level *level)
{
#ifdef CAPPY_AMX
    if (level == &cappy_level_avx512 && cappy_has_tiles())
        return &cappy_unit_amx;
#endif
    return &level->unit;
}

static ort_status *take(const kernel *of, ort_context *context, size_t index, tensor *into)
{
    const ort_value *value;
    ort_shape *shape;
    void *data;
    TRY(ort_input(of->api)(context, index, &value));
    TRY(ort_data(of->api)((ort_value *)value, &data));
    into->data = data;
    TRY(ort_shape_of(of->api)(value, &shape));
    ort_status *failed = ort_dimension_count(of->api)(shape, &into->rank);
    if (!failed && into->rank <= MOST_DIMENSIONS)
        failed = ort_dimensions(of->api)(shape, into->shape, into->rank);
    ort_release_shape(of->api)(shape);
    if (failed)
        return failed;
    REQUIRE(of, into->rank <= MOST_DIMENSIONS);
    return NULL;
}

static ort_status *take_all(const kernel *of, ort_context *context, tensor *into, size_t count)
{
    for (size_t i = 0; i < count; i++)
        TRY(take(of, context, i, &into[i]));
    return NULL;
}

static ort_status *make(const kernel *of, ort_context *context, size_t index, const tensor *like, void **data)
{
    ort_value *value;
    TRY(ort_output(of->api)(context, index, like->shape, like->rank, &value));
    return ort_data(of->api)(value, data);
}

static bool is_vector(const tensor *one, size_t length) { return one->rank == 1 && (size_t)one->shape[0] == length; }

static bool is_matrix(const tensor *one, size_t width) { return one->rank == 2 && (size_t)one->shape[1] == width; }

static ort_status *take_quantisation(const kernel *of, const tensor *gain, const tensor *zero_point, size_t width,
                                     cappy_quantisation *into)
{
    REQUIRE(of, is_vector(gain, width));
    REQUIRE(of, zero_point->rank == 0);
    *into = (cappy_quantisation){gain->data, (float)*(const uint8_t *)zero_point->data};
    return NULL;
}

/* ---- Attention ---- */

typedef struct {
    cappy_attention task;
    cappy_attend *attend;
    char *scratch; /* for all heads, or NULL: on the stack, where it is near and costs no page faults */
    size_t scratch_size;
} attending;

static void attend_head(void *data, size_t head)
{
    const attending *all = data;
    if (all->scratch) {
        all->attend(&all->task, head, all->scratch + head * all->scratch_size);
        return;
    }
    _Alignas(CACHE_LINE) char scratch[STACK_SCRATCH];
    all->attend(&all->task, head, scratch);
}

/* Segments must lie in their rows, and spans in the queries; in a window, they must be as long. */
static bool measure(cappy_attention *task, size_t tokens, size_t context_tokens, size_t queries)
{
    for (size_t i = 0; i < task->segment_count; i++) {
        const cappy_segment one = task->segments[i];
        const cappy_span span = task->spans[i];
        if (one.first < 0 || one.end <= one.first || (size_t)one.end > tokens || one.context_first < 0 ||
            one.context_end < one.context_first || (size_t)one.context_end > context_tokens || span.first < 0 ||
            span.end < span.first || (size_t)span.end > queries ||
            (task->window && span.end - span.first != one.end - one.first))
            return false;
        cappy_measure(task, one);
    }
    return true;
}

enum { QUERY, KEY_VALUE, CONTEXT, KEPT_TOKENS, SEGMENTS, SPANS, ATTENTION_GAIN, ATTENTION_ZERO_POINT, ATTENTION_INPUTS };

/* Gives out the keys and values of the first tokens. They are copied, since an output stays in memory to the end of a
 * run, and mostly none are asked for. */
static ort_status *keep(const kernel *of, ort_context *context, const tensor *key_value, const tensor *kept_tokens)
{
    REQUIRE(of, is_vector(kept_tokens, 1));
    const int64_t count = *(const int64_t *)kept_tokens->data;
    REQUIRE(of, count >= 0 && count <= key_value->shape[0]);
    const tensor shape = {.rank = 2, .shape = {count, key_value->shape[1]}};
    void *kept;
    TRY(make(of, context, 1, &shape, &kept));
    if (count)
        memcpy(kept, key_value->data, (size_t)count * (size_t)key_value->shape[1] * sizeof(float));
    return NULL;
}

static ort_status *attend(const kernel *of, ort_context *context, bool to_bytes)
{
    tensor in[ATTENTION_INPUTS];
    attending all = {.attend = to_bytes ? of->level->attend_in_bytes : of->level->attend};
    TRY(take_all(of, context, in, to_bytes ? ATTENTION_INPUTS : ATTENTION_GAIN));
    REQUIRE(of, in[QUERY].rank == 2);
    const size_t hidden = (size_t)in[QUERY].shape[1], context_tokens = (size_t)in[CONTEXT].shape[1];
    REQUIRE(of, of->heads > 0 && hidden % (size_t)of->heads == 0);
    REQUIRE(of, is_matrix(&in[KEY_VALUE], 2 * hidden));
    REQUIRE(of, in[CONTEXT].rank == 3 && (size_t)in[CONTEXT].shape[2] == 2 * hidden);
    REQUIRE(of, of->layer >= 0 && of->layer < in[CONTEXT].shape[0]);
    REQUIRE(of, of->window >= 0 && of->window <= (to_bytes ? 0 : CAPPY_MOST_PLACES));
    REQUIRE(of, is_matrix(&in[SEGMENTS], 4) && is_matrix(&in[SPANS], 2) && in[SEGMENTS].shape[0] == in[SPANS].shape[0]);
    const float *kept = (const float *)in[CONTEXT].data + (size_t)of->layer * context_tokens * 2 * hidden;
    all.task = (cappy_attention){
        .query = in[QUERY].data,
        .key_value = in[KEY_VALUE].data,
        .context = context_tokens ? kept : in[KEY_VALUE].data,
        .segments = in[SEGMENTS].data,
        .spans = in[SPANS].data,
        .segment_count = (size_t)in[SEGMENTS].shape[0],
        .hidden = hidden,
        .heads = (size_t)of->heads,
        .window = (size_t)of->window,
        .unit = of->unit,
    };
    const size_t tokens = (size_t)in[KEY_VALUE].shape[0];
    const bool segments_fit =
        measure(&all.task, tokens, context_tokens ? context_tokens : tokens, (size_t)in[QUERY].shape[0]);
    REQUIRE(of, segments_fit);
    void *result;
    TRY(make(of, context, 0, &in[QUERY], &result));
    TRY(keep(of, context, &in[KEY_VALUE], &in[KEPT_TOKENS]));
    if (to_bytes) {
        TRY(take_quantisation(of, &in[ATTENTION_GAIN], &in[ATTENTION_ZERO_POINT], hidden, &all.task.quantisation));
        REQUIRE(of, all.task.longest_shared + all.task.longest_own <= CAPPY_MOST_SEEN);
        all.task.codes = result;
        all.scratch_size = cappy_attention_in_bytes_scratch(&all.task);
    } else {
        all.task.numbers = result;
        all.scratch_size = (cappy_attention_scratch(&all.task) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    }
    if (all.scratch_size > STACK_SCRATCH) {
        all.scratch = aligned_alloc(CACHE_LINE, all.task.heads * all.scratch_size);
        if (all.scratch == NULL)
            return ort_create_status(of->api)(ORT_FAIL, "cappy: out of memory");
    }
    ort_status *failed = cappy_share(of->api, context, attend_head, all.task.heads, &all);
    free(all.scratch);
    return failed;
}

static ort_status *attend_to_numbers(void *of, ort_context *context) { return attend(of, context, false); }

static ort_status *attend_to_bytes(void *of, ort_context *context) { return attend(of, context, true); }

/* ---- Rows ---- */

typedef struct {
    cappy_norm task;
    cappy_norm_rows *run;
    size_t rows;
} norming;

static size_t part_end(size_t part, size_t rows)
{
    const size_t end = (part + 1) * ROWS_A_PART;
    return end < rows ? end : rows;
}

static size_t parts_of(size_t rows) { return (rows + ROWS_A_PART - 1) / ROWS_A_PART; }

static void norm_part(void *data, size_t part)
{
    const norming *all = data;
    all->run(&all->task, part * ROWS_A_PART, part_end(part, all->rows));
}

enum { STATES, ADDED, NORM_GAIN, NORM_BIAS, NORM_CODE_GAIN, NORM_ZERO_POINT, NORM_INPUTS };

static ort_status *norm_to_bytes(void *data, ort_context *context)
{
    const kernel *of = data;
    tensor in[NORM_INPUTS];
    void *numbers, *codes;
    TRY(take_all(of, context, in, NORM_INPUTS));
    REQUIRE(of, in[STATES].rank == 2);
    const size_t hidden = (size_t)in[STATES].shape[1], rows = (size_t)in[STATES].shape[0];
    REQUIRE(of, hidden % 16 == 0);
    REQUIRE(of, is_matrix(&in[ADDED], hidden) && in[ADDED].shape[0] == in[STATES].shape[0]);
    REQUIRE(of, is_vector(&in[NORM_GAIN], hidden) && is_vector(&in[NORM_BIAS], hidden));
    TRY(make(of, context, 0, &in[STATES], &numbers));
    TRY(make(of, context, 1, &in[STATES], &codes));
    norming all = {.run = of->level->norm_rows, .rows = rows};
    all.task = (cappy_norm){
        .states = in[STATES].data,
        .added = in[ADDED].data,
        .gain = in[NORM_GAIN].data,
        .bias = in[NORM_BIAS].data,
        .hidden = hidden,
        .epsilon = of->epsilon,
        .numbers = numbers,
        .codes = codes,
    };
    TRY(take_quantisation(of, &in[NORM_CODE_GAIN], &in[NORM_ZERO_POINT], hidden, &all.task.quantisation));
    return cappy_share(of->api, context, norm_part, parts_of(rows), &all);
}

typedef struct {
    cappy_embedding task;
    cappy_embed_rows *run;
    size_t rows;
} embedding;

static void embed_part(void *data, size_t part)
{
    const embedding *all = data;
    all->run(&all->task, part * ROWS_A_PART, part_end(part, all->rows));
}

static bool all_below(const int64_t *ids, size_t count, int64_t limit)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= limit)
            return false;
    return true;
}

enum { IDS, TABLES = CAPPY_TABLES, SUM_GAIN = 3 * CAPPY_TABLES, SUM_BIAS, SUM_CODE_GAIN, SUM_ZERO_POINT, SUM_INPUTS };

/* Ids of all tables, then each table and its scales. */
static ort_status *embed_to_bytes(void *data, ort_context *context)
{
    const kernel *of = data;
    tensor in[SUM_INPUTS];
    void *numbers, *codes;
    TRY(take_all(of, context, in, SUM_INPUTS));
    REQUIRE(of, in[IDS].rank == 1 && in[TABLES].rank == 2);
    const size_t rows = (size_t)in[IDS].shape[0], hidden = (size_t)in[TABLES].shape[1];
    REQUIRE(of, hidden % 16 == 0);
    REQUIRE(of, is_vector(&in[SUM_GAIN], hidden) && is_vector(&in[SUM_BIAS], hidden));
    embedding all = {.run = of->level->embed_rows, .rows = rows};
    for (size_t t = 0; t < CAPPY_TABLES; t++) {
        const tensor *ids = &in[IDS + t], *table = &in[TABLES + 2 * t], *scales = table + 1;
        REQUIRE(of, is_vector(ids, rows) && is_matrix(table, hidden));
        REQUIRE(of, is_matrix(scales, 1) && scales->shape[0] == table->shape[0]);
        REQUIRE(of, all_below(ids->data, rows, table->shape[0]));
        all.task.tables[t] = (cappy_table){table->data, scales->data, ids->data};
    }
    const tensor shape = {.rank = 2, .shape = {(int64_t)rows, (int64_t)hidden}};
    TRY(make(of, context, 0, &shape, &numbers));
    TRY(make(of, context, 1, &shape, &codes));
    all.task.norm = (cappy_norm){
        .states = numbers,
        .gain = in[SUM_GAIN].data,
        .bias = in[SUM_BIAS].data,
        .hidden = hidden,
        .epsilon = of->epsilon,
        .numbers = numbers,
        .codes = codes,
    };
    TRY(take_quantisation(of, &in[SUM_CODE_GAIN], &in[SUM_ZERO_POINT], hidden, &all.task.norm.quantisation));
    return cappy_share(of->api, context, embed_part, parts_of(rows), &all);
}

/* ---- Linear layers ---- */

/* What one part computes: few rows of many columns, so that the rows stay near while the weights come by. */
#define LINEAR_COLUMNS 384

typedef struct {
    cappy_linear task;
    cappy_linear_part *run;
    size_t column_parts;
} multiplying;

static size_t least(size_t one, size_t other) { return one < other ? one : other; }

static void multiply_part(void *data, size_t part)
{
    const multiplying *all = data;
    const cappy_linear *task = &all->task;
    const size_t row = part / all->column_parts * CAPPY_LINEAR_ROWS;
    const size_t column = part % all->column_parts * LINEAR_COLUMNS;
    all->run(task, row, least(CAPPY_LINEAR_ROWS, task->rows - row), column,
             least(column + LINEAR_COLUMNS, task->columns));
}

enum { CODES, WEIGHT, SCALES, BIAS, LINEAR_GAIN, LINEAR_ZERO_POINT, LINEAR_INPUTS };

static ort_status *multiply(const kernel *of, ort_context *context, bool to_bytes)
{
    tensor in[LINEAR_INPUTS];
    void *result;
    TRY(take_all(of, context, in, to_bytes ? LINEAR_INPUTS : LINEAR_GAIN));
    REQUIRE(of, in[CODES].rank == 2 && in[WEIGHT].rank == 3);
    const size_t rows = (size_t)in[CODES].shape[0], inner = (size_t)in[CODES].shape[1];
    const size_t columns = 16 * (size_t)in[WEIGHT].shape[0];
    REQUIRE(of, 4 * (size_t)in[WEIGHT].shape[1] == inner && in[WEIGHT].shape[2] == 64);
    REQUIRE(of, is_vector(&in[SCALES], columns) && is_vector(&in[BIAS], columns));
    const tensor shape = {.rank = 2, .shape = {(int64_t)rows, (int64_t)columns}};
    TRY(make(of, context, 0, &shape, &result));
    multiplying all = {.run = of->level->linear_part, .column_parts = (columns + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS};
    all.task = (cappy_linear){
        .codes = in[CODES].data,
        .rows = rows,
        .inner = inner,
        .columns = columns,
        .weight = in[WEIGHT].data,
        .scales = in[SCALES].data,
        .bias = in[BIAS].data,
        .unit = inner % of->unit->step ? &of->level->unit : of->unit,
    };
    if (to_bytes) {
        TRY(take_quantisation(of, &in[LINEAR_GAIN], &in[LINEAR_ZERO_POINT], columns, &all.task.quantisation));
        all.task.codes_out = result;
    } else {
        all.task.numbers = result;
    }
    const size_t parts = (rows + CAPPY_LINEAR_ROWS - 1) / CAPPY_LINEAR_ROWS * all.column_parts;
    return cappy_share(of->api, context, multiply_part, parts, &all);
}

static ort_status *linear(void *of, ort_context *context) { return multiply(of, context, false); }

static ort_status *linear_gelu_to_bytes(void *of, ort_context *context) { return multiply(of, context, true); }

/* ---- What ONNX Runtime asks about them ---- */

#define MOST_INPUTS 13
#define MOST_OUTPUTS 2

typedef struct {
    ort_operator base; /* first, for ONNX Runtime gives its address */
    const char *name;
    ort_type inputs[MOST_INPUTS], outputs[MOST_OUTPUTS];
    size_t input_count, output_count;
} operator;

static const operator *own(const ort_operator *one) { return (const operator *)one; }
static const char *name(const ort_operator *one) { return own(one)->name; }
static const char *provider(const ort_operator *one) { return (void)one, NULL; }
static ort_type input_type(const ort_operator *one, size_t index) { return own(one)->inputs[index]; }
static size_t input_count(const ort_operator *one) { return own(one)->input_count; }
static ort_type output_type(const ort_operator *one, size_t index) { return own(one)->outputs[index]; }
static size_t output_count(const ort_operator *one) { return own(one)->output_count; }
static ort_presence presence(const ort_operator *one, size_t index) { return (void)one, (void)index, ORT_REQUIRED; }
static int memory_kind(const ort_operator *one, size_t index) { return (void)one, (void)index, 0; }
static int one_at_least(const ort_operator *one) { return (void)one, 1; }

/* An attribute that a node doesn't have stays as it is. */
static ort_status *create(const ort_operator *one, const ort_api *api, const ort_info *info, void **into)
{
    (void)one;
    kernel *made = calloc(1, sizeof *made);
    if (made == NULL)
        return ort_create_status(api)(ORT_FAIL, "cappy: out of memory");
    *made = (kernel){.api = api, .level = best_level()};
    made->unit = best_unit(made->level);
    ort_release_status(api)(ort_attribute_int(api)(info, "heads", &made->heads));
    ort_release_status(api)(ort_attribute_int(api)(info, "layer", &made->layer));
    ort_release_status(api)(ort_attribute_int(api)(info, "window", &made->window));
    ort_release_status(api)(ort_attribute_float(api)(info, "epsilon", &made->epsilon));
    *into = made;
    return NULL;
}

#define BASE(run)                                                                                                      \
    {                                                                                                                  \
        .version = 16,                                                                                                 \
        .name = name,                                                                                                  \
        .provider = provider,                                                                                          \
        .input_type = input_type,                                                                                      \
        .input_count = input_count,                                                                                    \
        .output_type = output_type,                                                                                    \
        .output_count = output_count,                                                                                  \
        .destroy = free,                                                                                               \
        .input_presence = presence,                                                                                    \
        .output_presence = presence,                                                                                   \
        .input_memory = memory_kind,                                                                                   \
        .variadic_input_arity = one_at_least,                                                                          \
        .variadic_input_homogeneity = one_at_least,                                                                    \
        .variadic_output_arity = one_at_least,                                                                         \
        .variadic_output_homogeneity = one_at_least,                                                                   \
        .create = create,                                                                                              \
        .compute = run,                                                                                                \
    }

#define ATTENTION_TYPES ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_INT64, ORT_INT64, ORT_INT64

#define LINEAR_TYPES ORT_UINT8, ORT_INT8, ORT_FLOAT, ORT_INT32

static const operator OPERATORS[] = {
    {BASE(attend_to_numbers), "Attention", {ATTENTION_TYPES}, {ORT_FLOAT, ORT_FLOAT}, ATTENTION_GAIN, 2},
    {BASE(attend_to_bytes),
     "AttentionToBytes",
     {ATTENTION_TYPES, ORT_FLOAT, ORT_UINT8},
     {ORT_UINT8, ORT_FLOAT},
     ATTENTION_INPUTS,
     2},
    {BASE(norm_to_bytes),
     "AddNormToBytes",
     {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_UINT8},
     {ORT_FLOAT, ORT_UINT8},
     6,
     2},
    {BASE(embed_to_bytes),
     "EmbedToBytes",
     {ORT_INT64, ORT_INT64, ORT_INT64, ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_FLOAT,
      ORT_FLOAT, ORT_FLOAT, ORT_UINT8},
     {ORT_FLOAT, ORT_UINT8},
     SUM_INPUTS,
     2},
    {BASE(linear), "Linear", {LINEAR_TYPES}, {ORT_FLOAT}, 4, 1},
    {BASE(linear_gelu_to_bytes), "LinearGeluToBytes", {LINEAR_TYPES, ORT_FLOAT, ORT_UINT8}, {ORT_UINT8}, 6, 1},
};

/* ONNX Runtime's way in: adds the operators to a session's options. */
__attribute__((visibility("default"))) ort_status *RegisterCustomOps(ort_options *options, const ort_base *base);

ort_status *RegisterCustomOps(ort_options *options, const ort_base *base)
{
    const ort_api *api = base->api(ORT_VERSION);
    ort_domain *domain; /* lives as long as the process, as a session may */
    TRY(ort_create_domain(api)(DOMAIN, &domain));
    for (size_t i = 0; i < sizeof OPERATORS / sizeof *OPERATORS; i++)
        TRY(ort_add_operator(api)(domain, &OPERATORS[i].base));
    return ort_add_domain(api)(options, domain);
}
