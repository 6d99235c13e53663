/* Fuzz target of the kernel. An input's bytes are a recipe for texts that have words in common and for calls of the
 * kernel on them, some with memory that runs out or a watch that stops them. Whatever the kernel answers is compared
 * with plain code below: rouge-score's words, the full table of the longest common subsequence, and the walk back
 * through it. Only the stemmer is the kernel's own; the Python tests compare it with NLTK's. `run` builds it. */
#define _DEFAULT_SOURCE /* mmap */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "parts.h"

#define MOST_TEXTS 20 /* three blocks of a matrix's rows */
#define MOST_BYTES 4096
#define MOST_WORDS (MOST_BYTES / 2 + MOST_TEXTS)
#define MOST_LINES 24 /* of a text */

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* ---- Faults ---- */

/* Which allocation fails, and which question of the watch is answered with a stop, counted from 1; 0: none. */
static size_t failing, stopping;
static bool failed, stopped;

static bool fails(void)
{
    const bool now = failing == 1;
    failing -= failing > 0;
    failed |= now;
    return now;
}

/* The linker's --wrap leads the kernel's allocations here. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size) { return fails() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return fails() ? NULL : __real_calloc(count, size); }
void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

/* The space of the call that goes on. */
static cappy_space *watched;

/* Makes the space ask its watch at every opportunity, rather than some hundred times a second. */
static void hurry(void) { watched->steps = SIZE_MAX / 2; }

static int stop(void *context)
{
    (void)context;
    const bool now = stopping == 1;
    stopping -= stopping > 0;
    stopped |= now;
    hurry();
    return now;
}

/* A byte of the input says which of them, if any. */
static void set_fault(unsigned char byte)
{
    failed = stopped = false;
    failing = byte % 2 ? byte / 2 % 16 : 0; /* calls allocate little */
    stopping = byte % 2 ? 0 : byte / 2;
}

static void clear_fault(void) { failing = stopping = 0; }

/* What a call must answer after it. */
static cappy_status expected_status(void) { return failed ? CAPPY_NO_MEMORY : stopped ? CAPPY_STOPPED : CAPPY_OK; }

/* Memory of the target's own, which doesn't run out. */
static void *allocate(size_t count, size_t size)
{
    void *memory = __real_malloc(count * size);
    REQUIRE(memory);
    return memory;
}

/* ---- The input, and the texts that it describes ---- */

typedef struct {
    const unsigned char *bytes;
    size_t size;
} input;

static unsigned char take(input *from)
{
    if (from->size == 0)
        return 0;
    from->size--;
    return *from->bytes++;
}

static struct {
    char bytes[MOST_BYTES];
    size_t used;
    size_t start; /* of the text that is being written */
} draft;

static cappy_text texts[MOST_TEXTS];
static size_t text_count;

/* Where a text ends: at the end of a page, behind which nothing may be read, since the sanitizers don't see what each
 * vector instruction reads. */
static char *page_end(size_t text)
{
    static char *pages;
    const size_t size = (size_t)sysconf(_SC_PAGESIZE);
    if (pages == NULL) {
        pages = mmap(NULL, 2 * MOST_TEXTS * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(pages != MAP_FAILED && size >= MOST_BYTES);
        for (size_t i = 0; i < MOST_TEXTS; i++)
            REQUIRE(mprotect(pages + (2 * i + 1) * size, size, PROT_NONE) == 0);
    }
    return pages + (2 * text + 1) * size;
}

/* As much of it as there is room for. */
static void append(const char *bytes, size_t size)
{
    const size_t room = MOST_BYTES - draft.used;
    memcpy(draft.bytes + draft.used, bytes, size < room ? size : room);
    draft.used += size < room ? size : room;
}

static void append_word(const char *word)
{
    append(word, strlen(word));
    append(" ", 1);
}

static void end_text(void)
{
    const size_t length = draft.used - draft.start;
    if (text_count == MOST_TEXTS)
        return;
    char *copy = page_end(text_count) - length;
    memcpy(copy, draft.bytes + draft.start, length);
    texts[text_count++] = (cappy_text){copy, length};
    draft.start = draft.used;
}

/* The same bytes at the same place; they take room as others do, which bounds the work. */
static void repeat_text(size_t which)
{
    end_text();
    if (text_count == MOST_TEXTS || texts[which % text_count].length > MOST_BYTES - draft.used)
        return;
    draft.used += texts[which % text_count].length;
    draft.start = draft.used;
    texts[text_count] = texts[which % text_count];
    text_count++;
}

static void forget_texts(void)
{
    text_count = 0;
    draft.used = draft.start = 0;
}

/* Some are equal in lower case, some once they are stemmed, some up to where a key of the lexicon ends. */
static const char *const words[32] = {
    "a",       "b",       "The",      "cat",        "sat",        "on",
    "42",      "x1",      "run",      "runs",       "Running",    "skies",
    "sky",     "dying",   "die",      "happy",      "happily",    "relate",
    "hope",    "hoping",  "hopping",  "RELATIONAL", "agreed",     "electric",
    "geologi", "geology", "the",      "electrical",
    "abcdefghijklmnop", "abcdefghijklmnopq", "abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstuvwxy",
};

/* Words of a small vocabulary in a random order. */
static void append_random(size_t count, unsigned vocabulary_size, unsigned seed)
{
    for (uint32_t state = seed + 1; count > 0; count--) {
        state = state * 1664525 + 1013904223;
        append_word(words[(state >> 16) % vocabulary_size]);
    }
}

/* Numbers, whose words are many different ones. */
static void append_numbers(unsigned first, unsigned count)
{
    for (unsigned number = first; number < first + count; number++) {
        char word[16];
        snprintf(word, sizeof word, "n%u", number);
        append_word(word);
    }
}

/* A word of any length, the start of every longer one. */
static void append_long_word(size_t length)
{
    for (size_t i = 0; i < length; i++)
        append(&"Abcdefghijklmnopqrstuvwxyz0123456789"[i % 36], 1);
}

/* The last bytes again and again. */
static void append_echo(size_t size, size_t times)
{
    const size_t length = draft.used - draft.start;
    const char *last = draft.bytes + draft.used - (size < length ? size : length);
    for (; times > 0; times--)
        append(last, size < length ? size : length);
}

static void append_text(size_t which)
{
    if (text_count)
        append(texts[which % text_count].bytes, texts[which % text_count].length);
}

/* An instruction is a byte: ASCII for itself, a word, or one of the ways above to write more. */
static void write_texts(input *from)
{
    while (from->size) {
        const unsigned char byte = take(from), low = byte % 16;
        if (byte < 0x80) {
            append((const char *)&byte, 1);
        } else if (byte < 0xA0) {
            append_word(words[byte - 0x80]);
        } else if (byte < 0xB0) {
            const unsigned vocabulary_size = 2 + take(from) % 31u;
            append_random(16u * (low + 1u), vocabulary_size, take(from));
        } else if (byte < 0xC0) {
            append_echo(take(from), low + 1u);
        } else if (byte < 0xC8) {
            append_echo(low + 1u, take(from));
        } else if (byte < 0xD0) {
            append_numbers(take(from), 16u * (low - 7u));
        } else if (byte < 0xD8) {
            append_long_word(take(from));
        } else if (byte < 0xE0) {
            end_text();
        } else if (byte < 0xE2) {
            repeat_text(take(from));
        } else if (byte < 0xE4) {
            append_text(take(from));
        } else if (byte < 0xE8) {
            const unsigned char any = take(from);
            append((const char *)&any, 1);
        } else if (byte < 0xF0) {
            append("\xC4\xB0", 2);
        } else if (byte < 0xF8) {
            append("\xE2\x84\xAA", 3);
        } else {
            append("\n", 1);
        }
    }
    end_text();
}

/* ---- What the kernel must answer ---- */

/* Words as numbers: equal numbers are equal words. */
typedef struct {
    const uint16_t *numbers;
    size_t length;
} word_list;

static struct {
    char *letters[MOST_WORDS];
    size_t lengths[MOST_WORDS];
    size_t count;
} vocabulary;

static uint16_t number_pool[MOST_WORDS];
static word_list whole[MOST_TEXTS];
static word_list lines[MOST_TEXTS * MOST_LINES];
static cappy_text line_texts[MOST_TEXTS * MOST_LINES];
static size_t first_line[MOST_TEXTS + 1]; /* and where the last text's end */
static size_t lcs[MOST_TEXTS][MOST_TEXTS];
static double lsum[MOST_TEXTS][3]; /* of each text against the next one as its reference */

static uint16_t number_of(const char *letters, size_t length)
{
    size_t i = 0;
    while (i < vocabulary.count &&
           (vocabulary.lengths[i] != length || memcmp(vocabulary.letters[i], letters, length) != 0))
        i++;
    if (i == vocabulary.count) {
        vocabulary.letters[i] = allocate(length, 1);
        memcpy(vocabulary.letters[i], letters, length);
        vocabulary.lengths[i] = length;
        vocabulary.count++;
    }
    return (uint16_t)i;
}

static void forget_vocabulary(void)
{
    for (size_t i = 0; i < vocabulary.count; i++)
        free(vocabulary.letters[i]);
    vocabulary.count = 0;
}

/* A line's words, as rouge-score finds them: runs of a-z and 0-9 in lower case, where a dotted capital I is an i and a
 * mark that ends the word, and the Kelvin sign is a k. Returns how many. */
static size_t read_line(cappy_text line, bool stem, uint16_t *numbers)
{
    char word[MOST_BYTES];
    size_t length = 0, count = 0, at = 0;
    while (at <= line.length) {
        const char *here = line.bytes + at;
        const size_t rest = line.length - at;
        const bool dotted_i = rest >= 2 && memcmp(here, "\xC4\xB0", 2) == 0;
        const bool kelvin = rest >= 3 && memcmp(here, "\xE2\x84\xAA", 3) == 0;
        char letter = dotted_i ? 'i' : kelvin ? 'k' : rest > 0 ? *here : ' ';
        if (letter >= 'A' && letter <= 'Z')
            letter = (char)(letter - 'A' + 'a');
        const bool in_word = (letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9');
        if (in_word)
            word[length++] = letter;
        if (length > 0 && (!in_word || dotted_i)) {
            if (stem && length > 3)
                length = cappy_stem(word, length);
            numbers[count++] = number_of(word, length);
            length = 0;
        }
        at += dotted_i ? 2 : kelvin ? 3 : 1;
    }
    return count;
}

static void read_texts(bool stem)
{
    uint16_t *numbers = number_pool;
    size_t line = 0;
    for (size_t i = 0; i < text_count; i++) {
        const char *start = texts[i].bytes, *end = start + texts[i].length;
        whole[i] = (word_list){numbers, 0};
        first_line[i] = line;
        for (bool last = false; !last; line++) {
            /* The last line may have others in it. */
            const bool more = line + 1 < first_line[i] + MOST_LINES;
            const char *newline = more ? memchr(start, '\n', (size_t)(end - start)) : NULL;
            last = newline == NULL;
            line_texts[line] = (cappy_text){start, (size_t)((last ? end : newline) - start)};
            lines[line] = (word_list){numbers, read_line(line_texts[line], stem, numbers)};
            numbers += lines[line].length;
            whole[i].length += lines[line].length;
            start += line_texts[line].length + !last;
        }
    }
    first_line[text_count] = line;
}

/* [i][j]: length of the longest common subsequence of i words of the one and j words of the other list. */
static uint16_t table[(MOST_WORDS + 1) * (MOST_WORDS + 1)];

static size_t fill_table(word_list rows, word_list columns)
{
    const size_t width = columns.length + 1;
    memset(table, 0, width * sizeof *table);
    for (size_t i = 1; i <= rows.length; i++) {
        const uint16_t *above = table + (i - 1) * width;
        uint16_t *row = table + i * width;
        row[0] = 0;
        for (size_t j = 1; j <= columns.length; j++) {
            const uint16_t larger = above[j] > row[j - 1] ? above[j] : row[j - 1];
            row[j] = rows.numbers[i - 1] == columns.numbers[j - 1] ? (uint16_t)(above[j - 1] + 1) : larger;
        }
    }
    return table[rows.length * width + columns.length];
}

/* Adds the places in a reference's line of the subsequence that rouge-score reads out of the table. */
static void add_places(word_list prediction, word_list reference, bool *places)
{
    const size_t width = prediction.length + 1;
    size_t i = reference.length, j = prediction.length;
    fill_table(reference, prediction);
    while (i > 0 && j > 0) {
        if (reference.numbers[i - 1] == prediction.numbers[j - 1]) {
            places[i - 1] = true;
            i--;
            j--;
        } else if (table[i * width + j - 1] > table[(i - 1) * width + j]) {
            j--;
        } else {
            i--;
        }
    }
}

static void score(size_t common, size_t prediction_length, size_t reference_length, double scores[3])
{
    const double precision = common ? (double)common / (double)prediction_length : 0;
    const double recall = common ? (double)common / (double)reference_length : 0;
    scores[0] = precision;
    scores[1] = recall;
    scores[2] = common ? 2 * precision * recall / (precision + recall) : 0;
}

static void score_lsum(size_t prediction, size_t reference, double scores[3])
{
    size_t left[2][MOST_WORDS] = {{0}};
    size_t hits = 0;
    for (size_t i = 0; i < whole[prediction].length; i++)
        left[0][whole[prediction].numbers[i]]++;
    for (size_t i = 0; i < whole[reference].length; i++)
        left[1][whole[reference].numbers[i]]++;
    for (size_t r = first_line[reference]; r < first_line[reference + 1]; r++) {
        bool places[MOST_WORDS] = {false};
        for (size_t p = first_line[prediction]; p < first_line[prediction + 1]; p++)
            add_places(lines[p], lines[r], places);
        for (size_t i = 0; i < lines[r].length; i++) {
            const uint16_t number = lines[r].numbers[i];
            if (places[i] && left[0][number] > 0 && left[1][number] > 0) {
                left[0][number]--;
                left[1][number]--;
                hits++;
            }
        }
    }
    score(hits, whole[prediction].length, whole[reference].length, scores);
}

static void compute_answers(bool stem)
{
    read_texts(stem);
    for (size_t i = 0; i < text_count; i++) {
        for (size_t j = i; j < text_count; j++)
            lcs[i][j] = lcs[j][i] = fill_table(whole[i], whole[j]);
        score_lsum(i, (i + 1) % text_count, lsum[i]);
    }
}

/* ---- Reading ---- */

/* What the kernel read; the ids are in memory of just the size that it asks for. */
typedef struct {
    cappy_lexicon *lexicon;
    cappy_sequence whole[MOST_TEXTS], lines[MOST_TEXTS * MOST_LINES];
    cappy_summary summaries[MOST_TEXTS];
    cappy_id *whole_ids, *line_ids;
} reading;

static size_t id_bound(const cappy_text *of, size_t count)
{
    size_t bound = 0;
    for (size_t i = 0; i < count; i++)
        bound += cappy_word_bound(of[i].length);
    return bound;
}

/* Equal words have equal ids, and different words different ones. */
static void check_ids(const reading *of)
{
    const cappy_id bound = cappy_lexicon_bound(of->lexicon);
    cappy_id *ids = allocate(vocabulary.count + 1, sizeof *ids);
    uint16_t *numbers = allocate(bound, sizeof *numbers);
    memset(ids, 0xFF, (vocabulary.count + 1) * sizeof *ids);
    memset(numbers, 0xFF, bound * sizeof *numbers);
    for (size_t k = 0; k < text_count + first_line[text_count]; k++) {
        const word_list expected = k < text_count ? whole[k] : lines[k - text_count];
        const cappy_sequence got = k < text_count ? of->whole[k] : of->lines[k - text_count];
        REQUIRE(got.length == expected.length);
        for (size_t i = 0; i < got.length; i++) {
            const cappy_id id = got.ids[i];
            const uint16_t number = expected.numbers[i];
            REQUIRE(id < bound);
            if (ids[number] == UINT32_MAX && numbers[id] == UINT16_MAX) {
                ids[number] = id;
                numbers[id] = number;
            }
            REQUIRE(ids[number] == id && numbers[id] == number);
        }
    }
    REQUIRE(cappy_lexicon_size(of->lexicon) >= vocabulary.count);
    free(ids);
    free(numbers);
}

static void read_all(reading *into, bool stem, unsigned char fault)
{
    const size_t line_count = first_line[text_count];
    into->whole_ids = allocate(id_bound(texts, text_count), sizeof(cappy_id));
    into->line_ids = allocate(id_bound(line_texts, line_count), sizeof(cappy_id));
    set_fault(fault);
    into->lexicon = cappy_lexicon_new(stem);
    REQUIRE(!into->lexicon == failed);
    if (into->lexicon) {
        const cappy_status status = cappy_read(into->lexicon, texts, text_count, into->whole_ids, into->whole);
        REQUIRE(status == expected_status());
        clear_fault();
    } else {
        into->lexicon = cappy_lexicon_new(stem);
    }
    /* Once more: a lexicon remembers, whether all went well or not. */
    REQUIRE(cappy_read(into->lexicon, texts, text_count, into->whole_ids, into->whole) == CAPPY_OK);
    REQUIRE(cappy_read(into->lexicon, line_texts, line_count, into->line_ids, into->lines) == CAPPY_OK);
    for (size_t i = 0; i < text_count; i++)
        into->summaries[i] = (cappy_summary){into->lines + first_line[i], first_line[i + 1] - first_line[i]};
    check_ids(into);
}

static void free_reading(reading *of)
{
    cappy_lexicon_free(of->lexicon);
    free(of->whole_ids);
    free(of->line_ids);
}

/* ---- Scoring ---- */

/* What is scored: `count` texts from `first` on. */
typedef struct {
    enum { PAIRS, TEXTS, SUMMARIES, MATRIX, KINDS } kind;
    size_t first, count;
    size_t block_step;    /* of a matrix */
    bool share_reference; /* pairs that are neighbours do */
} task;

/* All bits set: no score, so one that is left out differs from any answer. */
static double *empty_scores(size_t count)
{
    double *scores = allocate(count, sizeof *scores);
    memset(scores, 0xFF, count * sizeof *scores);
    return scores;
}

/* Each text against each, as sequences or as texts. */
static cappy_status score_pairs(cappy_space *space, const reading *of, task what)
{
    const size_t count = what.count * what.count;
    size_t *places[2] = {allocate(count, sizeof **places), allocate(count, sizeof **places)};
    cappy_sequence *sequences = allocate(2 * count, sizeof *sequences);
    cappy_text *pairs = allocate(2 * count, sizeof *pairs);
    double *scores = empty_scores(3 * count);
    for (size_t k = 0; k < count; k++) {
        places[what.share_reference][k] = what.first + k / what.count;
        places[!what.share_reference][k] = what.first + k % what.count;
        for (size_t side = 0; side < 2; side++) {
            sequences[side * count + k] = of->whole[places[side][k]];
            pairs[side * count + k] = texts[places[side][k]];
        }
    }
    const cappy_status status =
        what.kind == TEXTS
            ? cappy_rouge_l_texts(space, of->lexicon, pairs, pairs + count, count, scores)
            : cappy_rouge_l_pairs(space, sequences, sequences + count, count, cappy_lexicon_bound(of->lexicon), scores);
    for (size_t k = 0; status == CAPPY_OK && k < count; k++) {
        double expected[3];
        score(lcs[places[0][k]][places[1][k]], sequences[k].length, sequences[count + k].length, expected);
        REQUIRE(memcmp(scores + 3 * k, expected, sizeof expected) == 0);
    }
    free(places[0]);
    free(places[1]);
    free(sequences);
    free(pairs);
    free(scores);
    return status;
}

/* Each text against the next one. */
static cappy_status score_summaries(cappy_space *space, const reading *of, task what)
{
    cappy_summary *references = allocate(what.count, sizeof *references);
    double *scores = empty_scores(3 * what.count);
    for (size_t i = 0; i < what.count; i++)
        references[i] = of->summaries[(what.first + i + 1) % text_count];
    const cappy_status status = cappy_rouge_lsum_pairs(space, of->summaries + what.first, references, what.count,
                                                       cappy_lexicon_bound(of->lexicon), scores);
    REQUIRE(status != CAPPY_OK || memcmp(scores, lsum[what.first], what.count * sizeof *lsum) == 0);
    free(references);
    free(scores);
    return status;
}

static cappy_status score_matrix(cappy_space *space, const reading *of, task what)
{
    const cappy_sequence *sequences = of->whole + what.first;
    double *fmeasures = empty_scores(what.count * what.count);
    cappy_status status = CAPPY_OK;
    for (size_t block = 0; status == CAPPY_OK && block < what.block_step; block++)
        status = cappy_rouge_l_matrix(space, sequences, what.count, block, what.block_step,
                                      cappy_lexicon_bound(of->lexicon), fmeasures);
    for (size_t k = 0; status == CAPPY_OK && k < what.count * what.count; k++) {
        const size_t row = k / what.count, column = k % what.count;
        double expected[3];
        score(lcs[what.first + row][what.first + column], sequences[row].length, sequences[column].length, expected);
        REQUIRE(memcmp(&fmeasures[k], &expected[2], sizeof fmeasures[k]) == 0);
    }
    free(fmeasures);
    return status;
}

static void perform(cappy_space *space, const reading *of, task what, unsigned char fault)
{
    watched = space;
    hurry();
    set_fault(fault);
    const cappy_status status = what.kind == SUMMARIES ? score_summaries(space, of, what)
                                : what.kind == MATRIX  ? score_matrix(space, of, what)
                                                       : score_pairs(space, of, what);
    clear_fault();
    REQUIRE(status == expected_status());
}

static cappy_space *new_space(unsigned char fault)
{
    const cappy_watch watch = {stop, NULL};
    set_fault(fault);
    cappy_space *space = cappy_space_new(watch);
    clear_fault();
    REQUIRE(!space == failed);
    return space ? space : cappy_space_new(watch);
}

/* ---- The target ---- */

static task take_task(input *from)
{
    const unsigned char how = take(from), first = take(from), count = take(from);
    return (task){how % KINDS, first, count, 1 + how / KINDS % 3, how & 0x80};
}

/* The task's texts among those that there are. */
static task fit(task what)
{
    what.first %= text_count;
    what.count = 1 + what.count % (text_count - what.first);
    return what;
}

#define MOST_TASKS 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static reading read;
    input from = {data, size};
    task tasks[MOST_TASKS];
    unsigned char faults[MOST_TASKS];
    const unsigned char how = take(&from), reading_fault = take(&from);
    const bool stem = how & 1;
    const size_t task_count = 1 + how / 2 % MOST_TASKS;
    for (size_t i = 0; i < task_count; i++) {
        tasks[i] = take_task(&from);
        faults[i] = take(&from);
    }
    write_texts(&from);
    compute_answers(stem);
    read_all(&read, stem, reading_fault);

    cappy_space *kept = new_space(0);
    for (size_t i = 0; i < task_count; i++) {
        const task what = fit(tasks[i]);
        cappy_space *fresh = new_space(faults[i]);
        perform(fresh, &read, what, faults[i]);
        perform(kept, &read, what, faults[i]);
        /* A space is as good as new whether all went well or not. */
        perform(fresh, &read, what, 0);
        perform(kept, &read, what, 0);
        cappy_space_free(fresh);
    }
    cappy_space_free(kept);
    free_reading(&read);
    forget_vocabulary();
    forget_texts();
    return 0;
}
