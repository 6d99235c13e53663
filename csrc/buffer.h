/* Memory that grows as it is needed: all that the kernel has, but for the lexicon's table. */
#ifndef CAPPY_BUFFER_H
#define CAPPY_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

/* Memory of zeros, aligned to a cache line; NULL if there is none. To be freed. */
void *cappy_zeros(size_t count, size_t element_size);

typedef struct {
    void *bytes; /* aligned to a cache line */
    size_t size;
} cappy_buffer;

/* Room for `count` elements; false if there is no memory. If it has to grow, what was in it is lost, and all is 0. */
bool cappy_buffer_reserve(cappy_buffer *buffer, size_t count, size_t element_size);

void cappy_buffer_free(cappy_buffer *buffer);

#endif
