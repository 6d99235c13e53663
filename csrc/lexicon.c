/* Words to ids. A word that is longer than a key gets one from the id of what goes before and the next 8 letters, link
 * by link of a chain; so no letters are stored but in the keys, and two words have the same id just if they are the same.
 *
 * With stemming, keys of a second kind lead from words as they are written to the ids of their stems: each is stemmed
 * once. */
#include "lexicon.h"

#include <stdlib.h>

#include "blocks.h"
#include "parts.h"

/* Only words of more letters than this are stemmed, as in rouge-score. */
#define UNSTEMMED_LENGTH 3

/* Letters are ASCII, so the top bits of their bytes are free to tell the kinds of keys apart. */
#define WRITTEN ((uint64_t)1 << 63) /* in `low`: a word as it is written, yet to be stemmed */
#define LINK ((uint64_t)1 << 63)    /* in `high`: a link of a chain, with the id of what goes before; without, in no table:
                                     * a word whose id is known, which is `low` */
#define LINK_BYTES 8

#define FIRST_SLOTS 256
#define MOST_SLOTS ((size_t)1 << 32) /* so that ids are less than 2^32 */

/* The key's slot, or the free one where it would go. */
static cappy_slot *slot_of(const cappy_table *table, cappy_key key)
{
    for (size_t at = cappy_first_slot(table, key);; at++) {
        cappy_slot *slot = &table->slots[at & table->mask];
        if ((slot->key.low == key.low && slot->key.high == key.high) || slot->id == 0)
            return slot;
    }
}

/* Fills a free slot. */
static cappy_id enter(cappy_table *table, cappy_slot *slot, cappy_key key, cappy_id id)
{
    *slot = (cappy_slot){key, id};
    table->used++;
    return id;
}

static bool resize(cappy_table *table, size_t slot_count)
{
    const cappy_table old = *table;
    cappy_slot *slots = cappy_zeros(slot_count, sizeof *slots);
    if (slots == NULL)
        return false;
    *table = (cappy_table){slots, slot_count - 1, 0, 64 - __builtin_ctzll(slot_count)};
    for (size_t i = 0; old.slots && i <= old.mask; i++)
        if (old.slots[i].id)
            enter(table, slot_of(table, old.slots[i].key), old.slots[i].key, old.slots[i].id);
    free(old.slots);
    return true;
}

/* Makes room for so many new keys. */
static cappy_status reserve(cappy_lexicon *lexicon, size_t keys)
{
    const size_t needed = 2 * (lexicon->table.used + keys);
    size_t slot_count = lexicon->table.mask + 1;
    if (needed <= slot_count)
        return CAPPY_OK;
    while (slot_count < needed)
        slot_count *= 2;
    if (slot_count > MOST_SLOTS)
        return CAPPY_TOO_LARGE;
    return resize(&lexicon->table, slot_count) ? CAPPY_OK : CAPPY_NO_MEMORY;
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

/* The key's id, a new one if it has none. */
static cappy_id intern(cappy_lexicon *lexicon, cappy_key key)
{
    cappy_slot *slot = slot_of(&lexicon->table, key);
    return slot->id ? slot->id : enter(&lexicon->table, slot, key, ++lexicon->last);
}

static size_t stem(unsigned char *letters, size_t length)
{
    return length > UNSTEMMED_LENGTH ? cappy_stem((char *)letters, length) : length;
}

static cappy_id intern_stem(cappy_lexicon *lexicon, cappy_key written)
{
    const cappy_key key = {written.low & ~WRITTEN, written.high};
    unsigned char letters[2 * CAPPY_KEY_BYTES] = {0};
    memcpy(letters, &key, sizeof key);
    return intern(lexicon, cappy_key_of(letters, stem(letters, strlen((char *)letters))));
}

/* The id of a key that stands for a word in a text. */
static cappy_id id_of(cappy_lexicon *lexicon, cappy_key key)
{
    if (key.high == LINK)
        return (cappy_id)key.low;
    if (lexicon->kind != WRITTEN)
        return intern(lexicon, key);
    const cappy_slot *slot = slot_of(&lexicon->table, key);
    if (slot->id)
        return slot->id;
    const cappy_id id = intern_stem(lexicon, key);
    return enter(&lexicon->table, slot_of(&lexicon->table, key), key, id);
}

cappy_status cappy_key_of_long(cappy_lexicon *lexicon, const unsigned char *letters, size_t length, cappy_key *key)
{
    if (!cappy_buffer_reserve(&lexicon->word, length + CAPPY_KEY_BYTES, 1))
        return CAPPY_NO_MEMORY;
    unsigned char *word = lexicon->word.bytes;
    for (size_t i = 0; i < length; i++)
        word[i] = letters[i] | 0x20;
    if (lexicon->kind == WRITTEN)
        length = stem(word, length);
    const cappy_status status = reserve(lexicon, 1 + length / LINK_BYTES);
    if (status != CAPPY_OK)
        return status;
    cappy_id id = intern(lexicon, cappy_key_of(word, length < CAPPY_KEY_BYTES ? length : CAPPY_KEY_BYTES));
    for (size_t at = CAPPY_KEY_BYTES; at < length; at += LINK_BYTES) {
        const size_t rest = length - at;
        const uint64_t link = cappy_key_of(word + at, rest < LINK_BYTES ? rest : LINK_BYTES).low;
        id = intern(lexicon, (cappy_key){link, LINK | id});
    }
    *key = (cappy_key){id, LINK};
    return CAPPY_OK;
}

#ifdef CAPPY_MASKS

/* The key in each of four slots. */
static inline CAPPY_MASKS __m512i keys_in(const cappy_slot *slots[CAPPY_FOUR])
{
    __m512i keys = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)&slots[0]->key));
    keys = _mm512_inserti64x2(keys, _mm_loadu_si128((const __m128i *)&slots[1]->key), 1);
    keys = _mm512_inserti64x2(keys, _mm_loadu_si128((const __m128i *)&slots[2]->key), 2);
    return _mm512_inserti64x2(keys, _mm_loadu_si128((const __m128i *)&slots[3]->key), 3);
}

/* Most words are found where the search for them begins, and four are looked up there at once. */
static CAPPY_MASKS void look_up_fours(cappy_lexicon *lexicon, const cappy_key *keys, size_t count, cappy_id *ids)
{
    const cappy_table *table = &lexicon->table;
    for (size_t i = 0; i < count; i += CAPPY_FOUR) {
        const size_t words = count - i < CAPPY_FOUR ? count - i : CAPPY_FOUR;
        const __mmask8 there = (__mmask8)_bzhi_u32(0xFF, 2 * (unsigned)words);
        const __m512i four = _mm512_maskz_loadu_epi64(there, keys + i);
        uint64_t at[2 * CAPPY_FOUR];
        _mm512_storeu_si512(at, cappy_first_slots(table, four));
        const cappy_slot *slots[CAPPY_FOUR];
        for (size_t k = 0; k < CAPPY_FOUR; k++)
            slots[k] = &table->slots[at[2 * k]];
        const unsigned differ = _mm512_mask_cmpneq_epi64_mask(there, four, keys_in(slots));
        for (size_t k = 0; k < CAPPY_FOUR; k++)
            ids[i + k] = slots[k]->id;
        if (differ)
            for (size_t k = 0; k < words; k++)
                if (differ >> 2 * k & 3)
                    ids[i + k] = id_of(lexicon, keys[i + k]);
    }
}

#endif

cappy_status cappy_look_up(cappy_lexicon *lexicon, const cappy_key *keys, size_t count, cappy_id *ids)
{
    /* A word and its stem. */
    const cappy_status status = reserve(lexicon, 2 * count);
    if (status != CAPPY_OK)
        return status;
#ifdef CAPPY_MASKS
    if (cappy_has_masks()) {
        look_up_fours(lexicon, keys, count, ids);
        return CAPPY_OK;
    }
#endif
    for (size_t i = 0; i < count; i++)
        ids[i] = id_of(lexicon, keys[i]);
    return CAPPY_OK;
}
