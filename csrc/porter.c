/* Porter's stemmer (M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980) with the changes of NLTK's
 * default mode, which is what rouge-score stems with; each is marked "NLTK". Digits count as consonants. */
#include <string.h>

#include "parts.h"

typedef struct {
    const char *suffix;
    const char *replacement;
    unsigned char suffix_length;
    unsigned char replacement_length;
} rule;

#define RULE(suffix, replacement) {suffix, replacement, sizeof(suffix) - 1, sizeof(replacement) - 1}
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* NLTK: words that the rules would get wrong. Words of three letters are never stemmed, so "sky" is not among them. */
static const rule irregular[] = {
    RULE("skies", "sky"),       RULE("dying", "die"),       RULE("lying", "lie"),       RULE("tying", "tie"),
    RULE("news", "news"),       RULE("innings", "inning"),  RULE("inning", "inning"),   RULE("outings", "outing"),
    RULE("outing", "outing"),   RULE("cannings", "canning"), RULE("canning", "canning"), RULE("howe", "howe"),
    RULE("proceed", "proceed"), RULE("exceed", "exceed"),   RULE("succeed", "succeed"),
};

static const rule plurals[] = {RULE("sses", "ss"), RULE("ies", "i"), RULE("ss", "ss"), RULE("s", "")};

static const rule step2_rules[] = {
    RULE("ational", "ate"), RULE("tional", "tion"), RULE("enci", "ence"),   RULE("anci", "ance"),
    RULE("izer", "ize"),    RULE("bli", "ble"),     RULE("alli", "al"),     RULE("entli", "ent"),
    RULE("eli", "e"),       RULE("ousli", "ous"),   RULE("ization", "ize"), RULE("ation", "ate"),
    RULE("ator", "ate"),    RULE("alism", "al"),    RULE("iveness", "ive"), RULE("fulness", "ful"),
    RULE("ousness", "ous"), RULE("aliti", "al"),    RULE("iviti", "ive"),   RULE("biliti", "ble"),
    RULE("fulli", "ful"), /* NLTK */
};

static const rule step3_rules[] = {
    RULE("icate", "ic"), RULE("ative", ""), RULE("alize", "al"), RULE("iciti", "ic"),
    RULE("ical", "ic"),  RULE("ful", ""),   RULE("ness", ""),
};

static const rule step4_rules[] = {
    RULE("al", ""),   RULE("ance", ""), RULE("ence", ""),  RULE("er", ""),   RULE("ic", ""),
    RULE("able", ""), RULE("ible", ""), RULE("ant", ""),   RULE("ement", ""), RULE("ment", ""),
    RULE("ent", ""),  RULE("ion", ""),  RULE("ou", ""),    RULE("ism", ""),  RULE("ate", ""),
    RULE("iti", ""),  RULE("ous", ""),  RULE("ive", ""),   RULE("ize", ""),
};

static bool is_plain_vowel(char letter)
{
    return letter == 'a' || letter == 'e' || letter == 'i' || letter == 'o' || letter == 'u';
}

/* Whether a letter is a vowel, given whether the one before it is: y is one behind a consonant. */
static bool is_vowel_after(char letter, bool after_vowel, bool first)
{
    return is_plain_vowel(letter) || (letter == 'y' && !first && !after_vowel);
}

static bool is_vowel(const char *word, size_t at)
{
    size_t start = at;
    while (start > 0 && word[start] == 'y')
        start--;
    bool vowel = is_vowel_after(word[start], false, true);
    while (start < at)
        vowel = is_vowel_after(word[++start], vowel, false);
    return vowel;
}

/* Porter's m: how often a vowel is followed by a consonant. */
static size_t measure(const char *word, size_t length)
{
    size_t m = 0;
    bool vowel = false;
    for (size_t i = 0; i < length; i++) {
        const bool after_vowel = vowel;
        vowel = is_vowel_after(word[i], after_vowel, i == 0);
        m += after_vowel && !vowel;
    }
    return m;
}

static bool has_vowel(const char *word, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (is_plain_vowel(word[i]) || (word[i] == 'y' && i > 0))
            return true; /* the first y that follows a letter follows a consonant, or a vowel was there before */
    return false;
}

/* *d */
static bool ends_double_consonant(const char *word, size_t length)
{
    return length >= 2 && word[length - 1] == word[length - 2] && !is_vowel(word, length - 1);
}

/* *o; NLTK: also a vowel and a consonant that are the whole word. */
static bool ends_cvc(const char *word, size_t length)
{
    if (length == 2)
        return is_vowel(word, 0) && !is_vowel(word, 1);
    if (length < 3)
        return false;
    const char last = word[length - 1];
    return !is_vowel(word, length - 3) && is_vowel(word, length - 2) && !is_vowel(word, length - 1) && last != 'w' &&
           last != 'x' && last != 'y';
}

static bool ends_with(const char *word, size_t length, const char *suffix, size_t suffix_length)
{
    return length >= suffix_length && word[length - 1] == suffix[suffix_length - 1] &&
           memcmp(word + length - suffix_length, suffix, suffix_length) == 0;
}

#define ENDS_WITH(suffix) ends_with(word, length, suffix, sizeof(suffix) - 1)

/* The first rule whose suffix the word has, or NULL. A later one isn't tried even if this one's condition fails. */
static const rule *find_rule(const rule *rules, size_t count, const char *word, size_t length)
{
    for (const rule *each = rules; each < rules + count; each++)
        if (ends_with(word, length, each->suffix, each->suffix_length))
            return each;
    return NULL;
}

static size_t apply(const rule *found, char *word, size_t length)
{
    const size_t stem = length - found->suffix_length;
    memcpy(word + stem, found->replacement, found->replacement_length);
    return stem + found->replacement_length;
}

/* Plurals: cats -> cat. */
static size_t step1a(char *word, size_t length)
{
    if (length == 4 && ENDS_WITH("ies")) /* NLTK: dies -> die, though flies -> fli */
        return 3;
    const rule *found = find_rule(plurals, COUNT(plurals), word, length);
    return found ? apply(found, word, length) : length;
}

/* What step 1b does to the stem of a removed -ed or -ing: hopp -> hop, fil -> file. */
static size_t mend(char *word, size_t length)
{
    const char last = word[length - 1];
    if (ENDS_WITH("at") || ENDS_WITH("bl") || ENDS_WITH("iz")) {
        word[length] = 'e';
        return length + 1;
    }
    if (ends_double_consonant(word, length))
        return last == 'l' || last == 's' || last == 'z' ? length : length - 1;
    if (measure(word, length) == 1 && ends_cvc(word, length)) {
        word[length] = 'e';
        return length + 1;
    }
    return length;
}

/* Past tenses and gerunds: plastered -> plaster, motoring -> motor. */
static size_t step1b(char *word, size_t length)
{
    if (ENDS_WITH("ied")) /* NLTK: died -> die, though spied -> spi */
        return length == 4 ? 3 : length - 2;
    if (ENDS_WITH("eed"))
        return measure(word, length - 3) > 0 ? length - 1 : length;
    const size_t stem = ENDS_WITH("ed") ? length - 2 : ENDS_WITH("ing") ? length - 3 : 0;
    return has_vowel(word, stem) ? mend(word, stem) : length;
}

/* NLTK: y -> i behind a consonant that isn't the word's first letter: happy -> happi, but enjoy, by. */
static size_t step1c(char *word, size_t length)
{
    if (length > 2 && word[length - 1] == 'y' && !is_vowel(word, length - 2))
        word[length - 1] = 'i';
    return length;
}

/* Double suffixes to single ones: relational -> relate. */
static size_t step2(char *word, size_t length)
{
    if (ENDS_WITH("alli") && measure(word, length - 4) > 0) /* NLTK: as -al, which may end a longer suffix */
        length -= 2;
    if (ENDS_WITH("logi")) /* NLTK: the l counts with the stem, so geologi -> geolog */
        return measure(word, length - 3) > 0 ? length - 1 : length;
    const rule *found = find_rule(step2_rules, COUNT(step2_rules), word, length);
    return found && measure(word, length - found->suffix_length) > 0 ? apply(found, word, length) : length;
}

/* electrical -> electric, hopeful -> hope. */
static size_t step3(char *word, size_t length)
{
    const rule *found = find_rule(step3_rules, COUNT(step3_rules), word, length);
    return found && measure(word, length - found->suffix_length) > 0 ? apply(found, word, length) : length;
}

/* Single suffixes off: allowance -> allow. */
static size_t step4(char *word, size_t length)
{
    const rule *found = find_rule(step4_rules, COUNT(step4_rules), word, length);
    if (!found)
        return length;
    const size_t stem = length - found->suffix_length;
    if (measure(word, stem) <= 1)
        return length;
    if (ENDS_WITH("ion") && word[stem - 1] != 's' && word[stem - 1] != 't')
        return length;
    return stem;
}

/* A final e off: probate -> probat, but rate. */
static size_t step5a(const char *word, size_t length)
{
    if (word[length - 1] != 'e')
        return length;
    const size_t m = measure(word, length - 1);
    return m > 1 || (m == 1 && !ends_cvc(word, length - 1)) ? length - 1 : length;
}

/* controll -> control. */
static size_t step5b(const char *word, size_t length)
{
    return ENDS_WITH("ll") && measure(word, length - 1) > 1 ? length - 1 : length;
}

size_t cappy_stem(char *word, size_t length)
{
    for (const rule *each = irregular; each < irregular + COUNT(irregular); each++)
        if (length == each->suffix_length && memcmp(word, each->suffix, length) == 0)
            return apply(each, word, length);
    length = step1a(word, length);
    length = step1b(word, length);
    length = step1c(word, length);
    length = step2(word, length);
    length = step3(word, length);
    length = step4(word, length);
    length = step5a(word, length);
    return step5b(word, length);
}
