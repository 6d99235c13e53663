#define _DEFAULT_SOURCE /* madvise */

#include "buffer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CACHE_LINE ((size_t)64)
#define HUGE_PAGE ((size_t)1 << 21)

void *cappy_zeros(size_t count, size_t element_size)
{
    if (count > SIZE_MAX / 4 / element_size)
        return NULL;
    /* Tables are read here and there, which takes a processor far longer where it has to find small pages. */
    const bool huge = count * element_size >= HUGE_PAGE;
    const size_t unit = huge ? HUGE_PAGE : CACHE_LINE;
    const size_t size = (count * element_size / unit + 1) * unit;
    void *bytes = aligned_alloc(unit, size);
    if (bytes == NULL)
        return NULL;
#ifdef MADV_HUGEPAGE
    if (huge)
        madvise(bytes, size, MADV_HUGEPAGE); /* a wish, not an order */
#endif
    return memset(bytes, 0, size);
}

bool cappy_buffer_reserve(cappy_buffer *buffer, size_t count, size_t element_size)
{
    if (count > SIZE_MAX / 4 / element_size)
        return false;
    size_t size = count * element_size;
    if (size <= buffer->size && buffer->bytes)
        return true;
    /* Twice as much at least, so that growing little by little costs no more than the last step. */
    if (size < 2 * buffer->size)
        size = 2 * buffer->size;
    cappy_buffer_free(buffer);
    buffer->bytes = cappy_zeros(size, 1);
    if (buffer->bytes == NULL)
        return false;
    buffer->size = size;
    return true;
}

void cappy_buffer_free(cappy_buffer *buffer)
{
    free(buffer->bytes);
    *buffer = (cappy_buffer){NULL, 0};
}
