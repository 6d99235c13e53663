/* Work in parts that the threads of a session share. */
#ifndef CAPPY_THREADS_H
#define CAPPY_THREADS_H

#include "ort.h"

ort_status *cappy_share(const ort_api *api, const ort_context *context, void (*work)(void *data, size_t part),
                        size_t parts, void *data);

#endif
