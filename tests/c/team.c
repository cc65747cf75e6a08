/* The team of threads on its own: jobs within jobs, which an application's should_stop or signal handler may start, run
 * on the calling thread alone; within a brief job, for which other callers wait, as well. */
#define _POSIX_C_SOURCE 200809L /* alarm */
#include <stdio.h>
#include <unistd.h>

#include "threads.h"

typedef struct {
    int shared, nested, alone; /* how many jobs had two workers; jobs begun within these; those of one worker */
} counts;

static void nothing(void *argument, const frnn_worker *w) {
    (void)argument;
    frnn_barrier(w->group, w->size);
}

static void inner(void *argument, const frnn_worker *w) {
    counts *n = argument;
    if (!w->caller) return;
    ++n->nested;
    n->alone += w->size == 1;
}

static void outer(void *argument, const frnn_worker *w) {
    counts *n = argument;
    if (!w->caller) return;
    n->shared += w->size > 1;
    frnn_run(2, 2, inner, argument);
}

int main(void) {
    enum { JOBS = 200 };
    counts lasting = {0}, brief = {0};
    alarm(60); /* a thread that waits for itself does so for ever */
    for (int i = 0; i < JOBS; ++i) {
        frnn_run(2, 2, outer, &lasting);
        frnn_run(2, 2, nothing, NULL); /* the other thread spins after it, for a brief job to have it */
        frnn_run(1, 2, outer, &brief);
    }
    printf("%d lasting and %d brief jobs of two workers, %d jobs within\n", lasting.shared, brief.shared,
           lasting.nested + brief.nested);
    const int expected =
        lasting.shared == JOBS && lasting.alone == JOBS && brief.nested == JOBS && brief.alone >= brief.shared;
    return !expected;
}
