"""The border to the C kernel: collects pointers, releases the GIL once around the batch, maps the status.

The same functions as `_kernel_py`, which is their specification; `rouge` checks the arguments for both, and hands over
lists of its own, which nobody changes while the GIL is released.
"""

from libc.stdlib cimport calloc, free

from cappy_lite.errors import InputValueError

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyBytes_AsStringAndSize(object text, char **bytes, Py_ssize_t *size) except -1

cdef extern from "cappy.h" nogil:
    ctypedef enum cappy_status:
        CAPPY_OK
        CAPPY_NO_MEMORY
        CAPPY_TOO_LARGE

    ctypedef struct cappy_text:
        const char *bytes
        size_t length

    ctypedef struct cappy_item:
        cappy_text prediction
        const cappy_text *references
        size_t reference_count

    cappy_status cappy_rouge_l_pairs(const cappy_item *items, size_t count, bint stem, double *scores)
    cappy_status cappy_rouge_l_matrix(
        const cappy_text *texts, size_t count, size_t first_row, size_t row_step, bint stem, double *fmeasures
    )


def rouge_l_pairs(list predictions, list references, bint stem, double[:, ::1] scores):
    cdef size_t count = len(predictions)
    cdef size_t i, used = 0, total = 0
    cdef tuple group, previous = None
    cdef cappy_status status
    # Encoded texts that their str doesn't keep.
    cdef list owned = []

    if <size_t>len(references) != count or <size_t>scores.shape[0] != count or scores.shape[1] != 3:
        raise ValueError("references and scores must have a row for each prediction, scores 3 columns")
    for group in references:
        if group is not previous:
            total += <size_t>len(group)
        previous = group
    if count == 0:
        return

    cdef cappy_item *items = <cappy_item *>calloc(count, sizeof(cappy_item))
    cdef cappy_text *texts = <cappy_text *>calloc(total + 1, sizeof(cappy_text))
    try:
        if items == NULL or texts == NULL:
            raise MemoryError
        for i in range(count):
            items[i].prediction = view(predictions[i], owned)
            group = references[i]
            items[i].reference_count = <size_t>len(group)
            if i > 0 and group is previous:
                items[i].references = items[i - 1].references
                continue
            previous = group
            items[i].references = texts + used
            for text in group:
                texts[used] = view(text, owned)
                used += 1
        with nogil:
            status = cappy_rouge_l_pairs(items, count, stem, &scores[0, 0])
        check(status)
    finally:
        free(items)
        free(texts)


def rouge_l_matrix(list texts, size_t first_row, size_t row_step, bint stem, double[:, ::1] fmeasures):
    cdef size_t count = len(texts)
    cdef size_t i
    cdef cappy_status status
    cdef list owned = []

    if <size_t>fmeasures.shape[0] != count or <size_t>fmeasures.shape[1] != count or row_step == 0:
        raise ValueError("fmeasures must have a row and a column for each text, and row_step must be positive")
    if count == 0:
        return

    cdef cappy_text *views = <cappy_text *>calloc(count, sizeof(cappy_text))
    try:
        if views == NULL:
            raise MemoryError
        for i in range(count):
            views[i] = view(texts[i], owned)
        with nogil:
            status = cappy_rouge_l_matrix(views, count, first_row, row_step, stem, &fmeasures[0, 0])
        check(status)
    finally:
        free(views)


cdef cappy_text view(object text, list owned) except *:
    """The text's UTF-8 where Python keeps it; `owned` keeps what had to be encoded anew."""
    cdef cappy_text result
    cdef Py_ssize_t size
    cdef char *bytes
    try:
        result.bytes = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:
        # Lone surrogates have no UTF-8; like all that isn't ASCII they only separate words.
        encoded = text.encode("utf-8", "surrogatepass")
        owned.append(encoded)
        PyBytes_AsStringAndSize(encoded, &bytes, &size)
        result.bytes = bytes
    result.length = <size_t>size
    return result


cdef int check(cappy_status status) except -1:
    if status == CAPPY_NO_MEMORY:
        raise MemoryError
    if status == CAPPY_TOO_LARGE:
        raise InputValueError("a prediction, one prediction's references, or the texts of a matrix exceed 1 GiB")
    return 0
