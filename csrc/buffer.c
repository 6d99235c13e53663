#include "buffer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_LINE 64

bool cappy_buffer_reserve(cappy_buffer *buffer, size_t count, size_t element_size)
{
    if (count > (SIZE_MAX / 4) / element_size)
        return false;
    size_t size = count * element_size;
    if (size <= buffer->size && buffer->bytes)
        return true;
    /* Twice as much at least, so that growing little by little costs no more than the last step. */
    if (size < 2 * buffer->size)
        size = 2 * buffer->size;
    size = (size / CACHE_LINE + 1) * CACHE_LINE;
    cappy_buffer_free(buffer);
    buffer->bytes = aligned_alloc(CACHE_LINE, size);
    if (buffer->bytes == NULL)
        return false;
    memset(buffer->bytes, 0, size);
    buffer->size = size;
    return true;
}

void cappy_buffer_free(cappy_buffer *buffer)
{
    free(buffer->bytes);
    *buffer = (cappy_buffer){NULL, 0};
}
