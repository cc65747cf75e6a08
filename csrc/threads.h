/* A small team of threads. frnn_run hands one function to n workers, the caller being the first, and returns when all
 * have finished. Workers wait spinning for some tenths of a millisecond, then asleep. */
#ifndef FRNN_THREADS_H
#define FRNN_THREADS_H

/* Groups of workers that meet at barriers of their own: all of them, and gangs. Those that group g is divided into are
 * 2g + 1 and 2g + 2. */
#define FRNN_ALL 0
#define FRNN_GROUPS 7

typedef struct {
    int id, size;   /* worker id of size, */
    int group;      /* in this group */
    int caller;     /* does it run on the thread that called? */
    int crowded;    /* are there more workers than processors, so that they take turns? */
    double meeting; /* nanoseconds that a barrier takes for each of its members: measured now and then */
} frnn_worker;

/* Runs work(argument, worker) on up to `threads` workers, or on up to `ready`, which is no less, as far as those still
 * spin. If the team is at work for another caller, other than on a job that needs no thread woken, or no more
 * threads can be had, on fewer: worker.size tells. A call from within a job runs on the calling thread alone. */
void frnn_run(int threads, int ready, void (*work)(void *argument, const frnn_worker *worker), void *argument);

/* The quota of processors that control groups put on this process, rounded up, or INT_MAX. */
int frnn_quota(void);

/* Nanoseconds on a clock that only goes forward. */
double frnn_now(void);

/* Returns once `members` workers of the running job have called it for this group. */
void frnn_barrier(int group, int members);

#endif
