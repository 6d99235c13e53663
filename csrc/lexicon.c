/* Words to ids. A word that is longer than a key gets one from the id of what goes before and the next 8 letters, link
 * by link of a chain; so no letters are stored but in the keys, and two words have the same id just if they are the same.
 *
 * With stemming, keys of a second kind lead from words as they are written to the ids of their stems: each is stemmed
 * once. */
#include "lexicon.h"

#include <stdlib.h>

#include "parts.h"

/* Only words of more letters than this are stemmed, as in rouge-score. */
#define UNSTEMMED_LENGTH 3

/* Letters are ASCII, so the top bits of their bytes are free to tell the kinds of keys apart. */
#define WRITTEN ((uint64_t)1 << 63) /* in `low`: a word as it is written, yet to be stemmed */
#define LINK ((uint64_t)1 << 63)    /* in `high`: a link of a chain */
#define LINK_BYTES 8

#define FIRST_SLOTS 256
#define MOST_SLOTS ((size_t)1 << 32) /* so that ids are less than 2^32 */

/* Enters a key that the table doesn't have. */
static cappy_id enter(cappy_table *table, cappy_key key, cappy_id id)
{
    size_t at = cappy_hash(key);
    while (table->slots[at & table->mask].id)
        at++;
    table->slots[at & table->mask] = (cappy_slot){key, id};
    table->used++;
    return id;
}

static bool resize(cappy_table *table, size_t slot_count)
{
    const cappy_table old = *table;
    cappy_slot *slots = cappy_zeros(slot_count, sizeof *slots);
    if (slots == NULL)
        return false;
    *table = (cappy_table){slots, slot_count - 1, 0};
    for (size_t i = 0; old.slots && i <= old.mask; i++)
        if (old.slots[i].id)
            enter(table, old.slots[i].key, old.slots[i].id);
    free(old.slots);
    return true;
}

cappy_lexicon *cappy_lexicon_new(bool stem)
{
    cappy_lexicon *lexicon = calloc(1, sizeof *lexicon);
    if (lexicon == NULL)
        return NULL;
    lexicon->kind = stem ? WRITTEN : 0;
    if (!resize(&lexicon->table, FIRST_SLOTS)) {
        free(lexicon);
        return NULL;
    }
    return lexicon;
}

void cappy_lexicon_free(cappy_lexicon *lexicon)
{
    if (lexicon == NULL)
        return;
    free(lexicon->table.slots);
    cappy_buffer_free(&lexicon->text);
    cappy_buffer_free(&lexicon->word);
    free(lexicon);
}

cappy_id cappy_lexicon_bound(const cappy_lexicon *lexicon) { return lexicon->last + 1; }

size_t cappy_lexicon_size(const cappy_lexicon *lexicon) { return lexicon->table.used; }

size_t cappy_lexicon_bytes(const cappy_lexicon *lexicon)
{
    return (lexicon->table.mask + 1) * sizeof *lexicon->table.slots + lexicon->text.size + lexicon->word.size;
}

cappy_status cappy_lexicon_reserve(cappy_lexicon *lexicon, size_t words, size_t letters)
{
    /* Each word, its stem, and the links of its chain. */
    const size_t needed = 2 * (lexicon->table.used + 2 * words + letters / LINK_BYTES);
    size_t slot_count = lexicon->table.mask + 1;
    if (needed <= slot_count)
        return CAPPY_OK;
    while (slot_count < needed)
        slot_count *= 2;
    if (slot_count > MOST_SLOTS)
        return CAPPY_TOO_LARGE;
    return resize(&lexicon->table, slot_count) ? CAPPY_OK : CAPPY_NO_MEMORY;
}

/* The key's id, a new one if it has none. */
static cappy_id intern(cappy_lexicon *lexicon, cappy_key key)
{
    const cappy_id id = cappy_table_id(&lexicon->table, key);
    return id ? id : enter(&lexicon->table, key, ++lexicon->last);
}

/* Letters in lower case, in a buffer with room to read a key behind them. */
static cappy_id intern_word(cappy_lexicon *lexicon, const unsigned char *letters, size_t length)
{
    if (length <= CAPPY_KEY_BYTES)
        return intern(lexicon, cappy_key_of(letters, length));
    cappy_id id = intern(lexicon, cappy_key_of(letters, CAPPY_KEY_BYTES));
    for (size_t at = CAPPY_KEY_BYTES; at < length; at += LINK_BYTES) {
        const size_t rest = length - at;
        const uint64_t link = cappy_key_of(letters + at, rest < LINK_BYTES ? rest : LINK_BYTES).low;
        id = intern(lexicon, (cappy_key){link, LINK | id});
    }
    return id;
}

static size_t stem(unsigned char *letters, size_t length)
{
    return length > UNSTEMMED_LENGTH ? cappy_stem((char *)letters, length) : length;
}

cappy_id cappy_lexicon_add(cappy_lexicon *lexicon, cappy_key written, size_t length)
{
    if (lexicon->kind != WRITTEN)
        return enter(&lexicon->table, written, ++lexicon->last);
    const cappy_key key = {written.low & ~WRITTEN, written.high};
    unsigned char letters[2 * CAPPY_KEY_BYTES] = {0};
    memcpy(letters, &key, sizeof key);
    return enter(&lexicon->table, written, intern_word(lexicon, letters, stem(letters, length)));
}

cappy_id cappy_lexicon_long_word(cappy_lexicon *lexicon, const unsigned char *letters, size_t length)
{
    if (!cappy_buffer_reserve(&lexicon->word, length + CAPPY_KEY_BYTES, 1))
        return 0;
    unsigned char *word = lexicon->word.bytes;
    for (size_t i = 0; i < length; i++)
        word[i] = letters[i] | 0x20;
    return intern_word(lexicon, word, lexicon->kind == WRITTEN ? stem(word, length) : length);
}
