#define _GNU_SOURCE
#include "threads.h"

#ifdef __linux__
#include <sched.h>

typedef struct {
    void (*work)(void *data, size_t part);
    void *data;
    const char *caller;
    int processor;
} shared;

/* Has an address of its own in each thread. */
static _Thread_local char self;

/* Makes the thread go on elsewhere, and then wherever it was allowed to. */
static void leave(int processor)
{
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed))
        return;
    others = allowed;
    CPU_CLR(processor, &others);
    if (CPU_COUNT(&others) && sched_setaffinity(0, sizeof others, &others) == 0)
        sched_setaffinity(0, sizeof allowed, &allowed);
}

static void do_part(void *data, size_t part)
{
    const shared *all = data;
    if (all->caller != &self && sched_getcpu() == all->processor)
        leave(all->processor);
    all->work(all->data, part);
}

/* Linux at times wakes a helper on its caller's processor while another has nothing to do, and lets both take turns of
 * some milliseconds: longer than a call may last. So a helper that finds itself there leaves. */
ort_status *cappy_share(const ort_api *api, const ort_context *context, void (*work)(void *data, size_t part),
                        size_t parts, void *data)
{
    shared all = {work, data, &self, sched_getcpu()};
    return ort_parallel_for(api)(context, do_part, parts, 0, &all);
}
#else
ort_status *cappy_share(const ort_api *api, const ort_context *context, void (*work)(void *data, size_t part),
                        size_t parts, void *data)
{
    return ort_parallel_for(api)(context, work, parts, 0, data);
}
#endif
