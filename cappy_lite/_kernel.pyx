"""The border to the C kernel: collects pointers, releases the GIL around the work, maps the status to an exception.

The same names as in `_kernel_py`, which is their specification; `rouge` checks the arguments for both.
"""

from libc.stdint cimport SIZE_MAX, uint32_t
from libc.stdlib cimport calloc, free, malloc

from cappy_lite.errors import InputValueError

cdef extern from "Python.h":
    # Borrowed: the list goes on owning it.
    ctypedef struct PyObject
    PyObject *PyList_GetItem(object items, Py_ssize_t index) except NULL
    bint PyUnicode_Check(PyObject *value)
    Py_ssize_t PyUnicode_GetLength(PyObject *text)
    const char *PyUnicode_AsUTF8AndSize(PyObject *text, Py_ssize_t *size)
    int PyBytes_AsStringAndSize(object text, char **bytes, Py_ssize_t *size) except -1
    void PyErr_Clear()

cdef extern from "cappy.h" nogil:
    ctypedef enum cappy_status:
        CAPPY_OK
        CAPPY_NO_MEMORY
        CAPPY_TOO_LARGE
        CAPPY_STOPPED

    ctypedef uint32_t cappy_id

    ctypedef struct cappy_text:
        const char *bytes
        size_t length

    ctypedef struct cappy_sequence:
        const cappy_id *ids
        size_t length

    ctypedef struct cappy_summary:
        const cappy_sequence *sentences
        size_t count

    ctypedef struct cappy_watch:
        int (*stop)(void *context) noexcept nogil
        void *context

    ctypedef struct cappy_lexicon:
        pass

    cappy_lexicon *cappy_lexicon_new(bint stem)
    void cappy_lexicon_free(cappy_lexicon *lexicon)
    cappy_id cappy_lexicon_bound(const cappy_lexicon *lexicon)
    size_t cappy_lexicon_size(const cappy_lexicon *lexicon)
    size_t cappy_lexicon_bytes(const cappy_lexicon *lexicon)
    size_t cappy_word_bound(size_t length)
    cappy_status cappy_read(
        cappy_lexicon *lexicon, const cappy_text *texts, size_t count, cappy_id *ids, cappy_sequence *sequences
    )

    ctypedef struct cappy_space:
        pass

    const size_t CAPPY_MATRIX_ROWS
    cappy_space *cappy_space_new(cappy_watch watch)
    void cappy_space_free(cappy_space *space)
    size_t cappy_space_bytes(cappy_space *space)
    cappy_status cappy_rouge_l_pairs(
        cappy_space *space, const cappy_sequence *predictions, const cappy_sequence *references, size_t count,
        cappy_id bound, double *scores
    )
    cappy_status cappy_rouge_l_texts(
        cappy_space *space, cappy_lexicon *lexicon, const cappy_text *predictions, const cappy_text *references,
        size_t count, double *scores
    )
    cappy_status cappy_rouge_lsum_pairs(
        cappy_space *space, const cappy_summary *predictions, const cappy_summary *references, size_t count,
        cappy_id bound, double *scores
    )
    cappy_status cappy_rouge_l_matrix(
        cappy_space *space, const cappy_sequence *sequences, size_t count, size_t first_block, size_t block_step,
        cappy_id bound, double *fmeasures
    )

cdef cappy_id LARGEST_ID = <cappy_id>-2

MATRIX_ROWS = CAPPY_MATRIX_ROWS


def all_texts(list values):
    cdef Py_ssize_t i
    for i in range(len(values)):
        if not PyUnicode_Check(PyList_GetItem(values, i)):
            return False
    return True


cdef class Sequences:
    cdef cappy_id *ids
    cdef cappy_sequence *items
    cdef size_t count
    cdef cappy_id bound

    def __dealloc__(self):
        free(self.ids)
        free(self.items)

    def __len__(self):
        return self.count


cdef Sequences empty_sequences(size_t count, size_t total):
    """Room for `count` sequences of `total` ids."""
    cdef Sequences result = Sequences.__new__(Sequences)
    # One more than needed, since they may answer NULL to a request for none.
    if total < SIZE_MAX // sizeof(cappy_id):
        result.ids = <cappy_id *>malloc((total + 1) * sizeof(cappy_id))
    result.items = <cappy_sequence *>calloc(count + 1, sizeof(cappy_sequence))
    if result.ids == NULL or result.items == NULL:
        raise MemoryError
    result.count = count
    return result


def sequences(list id_lists):
    cdef Sequences result
    cdef size_t count = len(id_lists)
    cdef size_t i, used = 0, total = 0
    cdef cappy_id number
    for ids in id_lists:
        total += <size_t>len(ids)
    result = empty_sequences(count, total)
    for i in range(count):
        result.items[i].ids = result.ids + used
        for value in <list?>id_lists[i]:
            number = value
            if used == total or number > LARGEST_ID:
                raise ValueError("ids must be less than 2**32 - 1, and their lists must not grow")
            result.ids[used] = number
            used += 1
            result.bound = max(result.bound, number + 1)
        result.items[i].length = result.ids + used - result.items[i].ids
    return result


cdef class Lexicon:
    cdef cappy_lexicon *lexicon

    def __cinit__(self, bint stem):
        self.lexicon = cappy_lexicon_new(stem)
        if self.lexicon == NULL:
            raise MemoryError

    def __dealloc__(self):
        cappy_lexicon_free(self.lexicon)

    @property
    def size(self):
        return cappy_lexicon_size(self.lexicon)

    @property
    def bytes(self):
        return cappy_lexicon_bytes(self.lexicon)

    def read(self, list texts):
        cdef list owned = texts[:]
        cdef Views views = views_of(owned)
        cdef Sequences result
        cdef cappy_status status
        cdef size_t total = 0, i
        if views is None:
            raise TypeError("texts must be str")
        for i in range(views.count):
            total += cappy_word_bound(views.items[i].length)
        result = empty_sequences(views.count, total)
        with nogil:
            status = cappy_read(self.lexicon, views.items, views.count, result.ids, result.items)
        check(status)
        result.bound = cappy_lexicon_bound(self.lexicon)
        return result


cdef class Scoring:
    cdef cappy_space *space
    cdef public object watch
    cdef object raised

    def __cinit__(self, watch):
        self.watch = watch
        self.space = cappy_space_new(cappy_watch(stop, <void *>self))
        if self.space == NULL:
            raise MemoryError

    def __dealloc__(self):
        cappy_space_free(self.space)

    @property
    def bytes(self):
        return cappy_space_bytes(self.space)

    def rouge_l_pairs(self, Sequences predictions not None, Sequences references not None, double[:, ::1] scores):
        cdef size_t count = scores.shape[0]
        cdef cappy_status status
        if predictions.count < count or references.count < count or scores.shape[1] != 3:
            raise ValueError("scores must have 3 columns, and a row for each pair or for the first ones")
        if count == 0:
            return
        with nogil:
            status = cappy_rouge_l_pairs(
                self.space, predictions.items, references.items, count, max(predictions.bound, references.bound),
                &scores[0, 0]
            )
        self.check(status)

    def rouge_l_texts(
        self, Lexicon lexicon not None, list predictions, list references, Py_ssize_t start, Py_ssize_t stop,
        double[:, ::1] scores
    ):
        # All in one stretch without the GIL: to get it back from another thread takes longer than to score some texts.
        cdef list some = predictions[start:stop], others = references[start:stop]
        cdef size_t count = scores.shape[0]
        cdef cappy_status status
        cdef Views some_views = views_of(some), other_views = views_of(others)
        if <size_t>len(some) != count or <size_t>len(others) != count or scores.shape[1] != 3:
            raise ValueError("scores must have 3 columns, and a row for each pair")
        if some_views is None or other_views is None:
            return False
        if count == 0:
            return True
        with nogil:
            status = cappy_rouge_l_texts(
                self.space, lexicon.lexicon, some_views.items, other_views.items, count, &scores[0, 0]
            )
        self.check(status)
        return True

    def rouge_lsum_pairs(
        self, Sequences predictions not None, list prediction_counts, Sequences references not None,
        list reference_counts, double[:, ::1] scores
    ):
        cdef size_t count = scores.shape[0]
        cdef cappy_status status
        cdef cappy_summary *summaries
        if <size_t>len(prediction_counts) != count or <size_t>len(reference_counts) != count or scores.shape[1] != 3:
            raise ValueError("scores must have 3 columns, and a row for each count of sentences")
        if count == 0:
            return
        summaries = <cappy_summary *>calloc(2 * count, sizeof(cappy_summary))
        if summaries == NULL:
            raise MemoryError
        try:
            group(predictions, prediction_counts, summaries)
            group(references, reference_counts, summaries + count)
            with nogil:
                status = cappy_rouge_lsum_pairs(
                    self.space, summaries, summaries + count, count, max(predictions.bound, references.bound),
                    &scores[0, 0]
                )
            self.check(status)
        finally:
            free(summaries)

    def rouge_l_matrix(
        self, Sequences texts not None, size_t first_block, size_t block_step, double[:, ::1] fmeasures
    ):
        cdef size_t count = texts.count
        cdef cappy_status status
        if <size_t>fmeasures.shape[0] != count or <size_t>fmeasures.shape[1] != count or block_step == 0:
            raise ValueError("fmeasures must have a row and a column for each text, and block_step must be positive")
        if count == 0:
            return
        with nogil:
            status = cappy_rouge_l_matrix(
                self.space, texts.items, count, first_block, block_step, texts.bound, &fmeasures[0, 0]
            )
        self.check(status)

    cdef int check(self, cappy_status status) except -1:
        if status == CAPPY_STOPPED:
            raised, self.raised = self.raised, None
            raise raised
        return check(status)


cdef int stop(void *context) noexcept with gil:
    cdef Scoring scoring = <Scoring>context
    try:
        scoring.watch()
    except BaseException as error:
        scoring.raised = error
        return True
    return False


cdef int group(Sequences sentences, list counts, cappy_summary *summaries) except -1:
    """Each summary's sentences: as many as its count, from where those of the one before end."""
    cdef size_t used = 0, i = 0
    cdef size_t number
    for count in counts:
        number = count
        if number > sentences.count - used:
            raise ValueError("the counts add up to more sentences than there are")
        summaries[i].sentences = sentences.items + used
        summaries[i].count = number
        used += number
        i += 1
    return 0


cdef class Views:
    """Texts' UTF-8, where Python keeps it; somebody else owns the texts."""
    cdef cappy_text *items
    cdef size_t count
    cdef list encoded

    def __dealloc__(self):
        free(self.items)


# Characters: so many that to ask whether all are ASCII takes no time beside reading them.
cdef enum:
    LONG_TEXT = 512


cdef Views views_of(list texts):
    """None if not all are str."""
    cdef Views views = Views.__new__(Views)
    cdef Py_ssize_t size, i, count = len(texts)
    cdef const char *bytes
    cdef PyObject *text
    cdef PyObject *before = NULL
    views.encoded = []
    views.count = count
    views.items = <cappy_text *>malloc((views.count + 1) * sizeof(cappy_text))
    if views.items == NULL:
        raise MemoryError
    for i in range(count):
        text = PyList_GetItem(texts, i)
        if text == before:
            views.items[i] = views.items[i - 1]
            continue
        before = text
        if not PyUnicode_Check(text):
            return None
        bytes = NULL
        if PyUnicode_GetLength(text) < LONG_TEXT or str.isascii(<object>text):
            bytes = PyUnicode_AsUTF8AndSize(text, &size)
        if bytes == NULL:
            bytes = encode(views, <object>text, &size)
        views.items[i] = cappy_text(bytes, <size_t>size)
    return views


cdef const char *encode(Views views, text, Py_ssize_t *size) except NULL:
    """A long text's UTF-8, which Python would keep as long as the text; or that of lone surrogates, which it can't give,
    and which like all that isn't ASCII only separate words."""
    cdef char *bytes
    PyErr_Clear()
    encoded = str.encode(text, "utf-8", "surrogatepass")
    views.encoded.append(encoded)
    PyBytes_AsStringAndSize(encoded, &bytes, size)
    return bytes


cdef int check(cappy_status status) except -1:
    if status == CAPPY_NO_MEMORY:
        raise MemoryError
    if status == CAPPY_TOO_LARGE:
        raise InputValueError(
            "the texts are too large for the kernel: more than 2**31 different words, or for Rouge-Lsum a line of more "
            "than some 90,000 words; split them"
        )
    return 0
