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

#define FIRST_SLOT_BITS 9
#define MOST_SLOT_BITS 32 /* ids have as many */

static bool resize(cappy_lexicon *lexicon, unsigned slot_bits)
{
    const cappy_table old = lexicon->table;
    const size_t size = (size_t)1 << slot_bits;
    const cappy_table table = {calloc(size, sizeof *table.slots), 64 - slot_bits, size - 1};
    if (table.slots == NULL)
        return false;
    for (size_t i = 0; old.slots && i <= old.mask; i++)
        if (old.slots[i].id)
            *cappy_table_find(&table, old.slots[i].key) = old.slots[i];
    free(old.slots);
    lexicon->table = table;
    return true;
}

cappy_lexicon *cappy_lexicon_new(bool stem)
{
    cappy_lexicon *lexicon = calloc(1, sizeof *lexicon);
    if (lexicon == NULL)
        return NULL;
    lexicon->kind = stem ? WRITTEN : 0;
    if (!resize(lexicon, FIRST_SLOT_BITS)) {
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

size_t cappy_lexicon_size(const cappy_lexicon *lexicon) { return lexicon->used; }

cappy_status cappy_lexicon_reserve(cappy_lexicon *lexicon, size_t words, size_t letters)
{
    /* Each word, its stem, and the links of its chain. */
    const size_t needed = lexicon->used + 2 * words + letters / LINK_BYTES;
    if (needed <= lexicon->table.mask / 2)
        return CAPPY_OK;
    unsigned slot_bits = 64 - lexicon->table.shift;
    while (needed > ((size_t)1 << slot_bits) / 2)
        slot_bits++;
    if (slot_bits > MOST_SLOT_BITS)
        return CAPPY_TOO_LARGE;
    return resize(lexicon, slot_bits) ? CAPPY_OK : CAPPY_NO_MEMORY;
}

/* The key's id, a new one if it has none. */
static cappy_id intern(cappy_lexicon *lexicon, cappy_key key)
{
    cappy_slot *slot = cappy_table_find(&lexicon->table, key);
    if (slot->id == 0) {
        *slot = (cappy_slot){key, ++lexicon->last};
        lexicon->used++;
    }
    return slot->id;
}

static cappy_id intern_word(cappy_lexicon *lexicon, const unsigned char *letters, size_t length)
{
    if (length <= CAPPY_KEY_BYTES)
        return intern(lexicon, cappy_key_of(letters, length));
    cappy_id id = intern(lexicon, cappy_key_of(letters, CAPPY_KEY_BYTES));
    for (size_t at = CAPPY_KEY_BYTES; at < length; at += LINK_BYTES) {
        const size_t rest = length - at, size = rest < LINK_BYTES ? rest : LINK_BYTES;
        /* A copy, since nothing may follow a word that is read where its text has it. */
        unsigned char link[CAPPY_KEY_BYTES] = {0};
        memcpy(link, letters + at, size);
        id = intern(lexicon, (cappy_key){cappy_key_of(link, size).low, LINK | id});
    }
    return id;
}

cappy_id cappy_lexicon_add(cappy_lexicon *lexicon, const unsigned char *letters, size_t length)
{
    if (lexicon->kind != WRITTEN)
        return intern_word(lexicon, letters, length);
    if (!cappy_buffer_reserve(&lexicon->word, length + CAPPY_KEY_BYTES, 1))
        return 0;
    unsigned char *stem = lexicon->word.bytes;
    for (size_t i = 0; i < length; i++)
        stem[i] = letters[i] | 0x20;
    const size_t stem_length = length > UNSTEMMED_LENGTH ? cappy_stem((char *)stem, length) : length;
    const cappy_id id = intern_word(lexicon, stem, stem_length);
    if (length <= CAPPY_KEY_BYTES) {
        cappy_key written = cappy_key_of(letters, length);
        written.low |= WRITTEN;
        *cappy_table_find(&lexicon->table, written) = (cappy_slot){written, id};
        lexicon->used++;
    }
    return id;
}
