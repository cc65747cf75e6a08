/* The team of threads: see threads.h.
 *
 * A wait is a bounded spin on a counter, then sleep under a mutex. With more workers than processors there is no spin.
 * After fork the child has none of the threads: it forgets the team and builds one anew when it needs it. The parent is
 * left alone, so a fork while the team is at work harms neither. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#endif
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fastrnn.h"
#include "threads.h"

enum { MAX_WORKERS = 256, SPINS = 16000, MEASURED = 6 /* barriers */ };
enum { BEATS = 20 };     /* pauses within which the beat of a thread that spins goes on */
#define MEASURED_FOR 1e7 /* ns */
#define SOON 2e5         /* ns, about as long as a thread spins: short jobs that begin within it follow each other */

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* A counter that threads wait on. A sleeper is counted before it looks at the value for the last time, and the value
 * changes before the sleepers are looked at, so no wake-up is lost. */
typedef struct {
    atomic_uint value;
    atomic_uint sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} event;

static void event_init(event *e) {
    atomic_init(&e->value, 0);
    atomic_init(&e->sleepers, 0);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->changed, NULL);
}

/* Spins, then sleeps, and when roused does the same again. `beat` goes on as long as it spins. */
static void event_wait(event *e, unsigned old, const atomic_int *spins, atomic_int *beat) {
    while (atomic_load_explicit(&e->value, memory_order_acquire) == old) {
        for (int i = 0, n = atomic_load(spins); i < n; ++i) {
            if (atomic_load_explicit(&e->value, memory_order_acquire) != old) return;
            if (beat) atomic_store_explicit(beat, i, memory_order_relaxed);
            pause_briefly();
        }
        pthread_mutex_lock(&e->mutex);
        atomic_fetch_add(&e->sleepers, 1);
        if (atomic_load(&e->value) == old) pthread_cond_wait(&e->changed, &e->mutex);
        atomic_fetch_sub(&e->sleepers, 1);
        pthread_mutex_unlock(&e->mutex);
    }
}

static void event_rouse(event *e) {
    if (atomic_load(&e->sleepers) == 0) return;
    pthread_mutex_lock(&e->mutex);
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->mutex);
}

static void event_advance(event *e) {
    atomic_fetch_add(&e->value, 1);
    event_rouse(e);
}

typedef struct {
    _Alignas(64) atomic_int arrived;
    event passed;
} barrier;

static void barrier_wait(barrier *b, int members, const atomic_int *spins) {
    const unsigned turn = atomic_load(&b->passed.value);
    if (atomic_fetch_add(&b->arrived, 1) + 1 == members) {
        atomic_store(&b->arrived, 0);
        event_advance(&b->passed);
    } else {
        event_wait(&b->passed, turn, spins, NULL);
    }
}

/* A thread of the team waits at its seat until a job that needs it starts. */
typedef struct {
    _Alignas(64) event started;
    pthread_t thread;
    int id;
    _Alignas(64) atomic_int beat;
} seat;

/* Does a thread spin at its seat, and on a processor? */
static int is_ready(const seat *s) {
    if (atomic_load(&s->started.sleepers) != 0) return 0;
    const int beat = atomic_load_explicit(&s->beat, memory_order_relaxed);
    for (int i = 0; i < BEATS; ++i) {
        if (atomic_load_explicit(&s->beat, memory_order_relaxed) != beat) return 1;
        pause_briefly();
    }
    return 0;
}

static struct {
    pthread_mutex_t busy; /* held by the caller whose job runs */
    atomic_int brief;     /* is that one over so soon that another caller waits for it? */
    int threads;          /* made so far: seats 1 to threads are taken */
    int quota;            /* processors that the control group grants */
#if defined(__linux__)
    cpu_set_t elsewhere; /* where the threads may run: where the last caller might, beside it only for want of room */
#endif

    void (*work)(void *, const frnn_worker *);
    void *argument;
    int size;
    int measures;         /* does the job end with a measurement of meeting? */
    double meeting, when; /* as in frnn_worker, and when that was measured */
    double asked;         /* when the last job was that pays with threads that spin */
    atomic_int spins;
    barrier groups[FRNN_GROUPS];
    atomic_int unfinished;
    event finished;
    seat seats[MAX_WORKERS];
} team;

/* Is this thread a caller whose job the team runs? Its job may ask something that makes a call of its own. */
static _Thread_local int has_team;

static void team_forget(void) {
    const int quota = team.quota;
    memset(&team, 0, sizeof team);
    team.quota = quota;
    pthread_mutex_init(&team.busy, NULL);
    event_init(&team.finished);
    for (int g = 0; g < FRNN_GROUPS; ++g) event_init(&team.groups[g].passed);
    for (int id = 0; id < MAX_WORKERS; ++id) event_init(&team.seats[id].started);
    team.meeting = 20; /* as on cores that share a cache */
}

static void team_init(void) {
    team_forget();
    team.quota = frnn_quota();
    pthread_atfork(NULL, NULL, team_forget);
}

static void team_ready(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, team_init);
}

int frnn_processors(void) {
    team_ready();
#if defined(__linux__)
    cpu_set_t set;
    const int count =
        sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    const int count = (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
    return count < 1 ? 1 : count < team.quota ? count : team.quota;
}

/* A scheduler may wake a thread on the processor of the one that wakes it, and take milliseconds to move it away:
 * longer than most jobs. So the threads are kept off the caller's processor, if there are enough others. */
static void team_spread(int size) {
#if defined(__linux__)
    cpu_set_t elsewhere;
    const int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof elsewhere, &elsewhere) != 0) return;
    if (CPU_COUNT(&elsewhere) >= size) CPU_CLR((size_t)here, &elsewhere);
    if (CPU_EQUAL(&elsewhere, &team.elsewhere)) return;
    for (int id = 1; id <= team.threads; ++id) {
        pthread_setaffinity_np(team.seats[id].thread, sizeof elsewhere, &elsewhere);
    }
    team.elsewhere = elsewhere;
#else
    (void)size;
#endif
}

/* One worker's part of the job. How fast the workers meet depends on which processors they run on, and those change. */
static void team_work(int id) {
    const frnn_worker worker = {id, team.size, FRNN_ALL, id == 0, !team.spins, team.meeting};
    team.work(team.argument, &worker);
    if (!team.measures) return;
    double fastest = HUGE_VAL; /* of some rounds, for a worker may still sleep, or lose its processor meanwhile */
    for (int round = 0; round < 4; ++round) {
        const double begin = frnn_now();
        for (int i = 0; i < MEASURED; ++i) frnn_barrier(FRNN_ALL, worker.size);
        const double time = frnn_now() - begin;
        if (time < fastest) fastest = time;
    }
    if (id > 0) return;
    team.when = frnn_now();
    team.meeting = fastest / MEASURED / worker.size;
}

static void *team_thread(void *own_seat) {
    seat *own = own_seat;
    for (unsigned turn = 0;; ++turn) {
        event_wait(&own->started, turn, &team.spins, &own->beat);
        team_work(own->id);
        if (atomic_fetch_sub(&team.unfinished, 1) == 1) event_advance(&team.finished);
    }
    return NULL;
}

/* Signals are for the application's own threads, one of which may be waiting for them: a new thread takes none, but
 * for those of its own faults. */
static int thread_started(seat *s) {
    const int faults[] = {SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    sigset_t others, before;
    sigfillset(&others);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; ++i) sigdelset(&others, faults[i]);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    const int started = pthread_create(&s->thread, NULL, team_thread, s) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

/* Seats threads until there are `threads`, or no more can be had. */
static void team_grow(int threads) {
    while (team.threads < threads) {
        seat *next = &team.seats[team.threads + 1];
        next->id = team.threads + 1;
        if (!thread_started(next)) return;
        pthread_detach(next->thread);
        ++team.threads;
#if defined(__linux__)
        CPU_ZERO(&team.elsewhere); /* the new one is yet to be told */
#endif
    }
}

/* How many workers there are for a job that pays with `threads` of them if they have to be woken, and with `ready` if
 * they spin. Where such jobs follow each other, threads that sleep are roused for the next one. */
static int workers_for(int threads, int ready, int processors) {
    if (ready > processors) ready = threads;
    int soon = 0;
    if (ready > threads) {
        const double now = frnn_now();
        soon = now - team.asked < SOON;
        team.asked = now;
    }
    if (soon) team.spins = SPINS;
    team_grow((soon ? ready : threads) - 1);
    int size = threads < team.threads + 1 ? threads : team.threads + 1;
    while (size < ready && size <= team.threads && is_ready(&team.seats[size])) ++size;
    if (soon && size < ready) team_spread(ready);
    for (int id = size; soon && id < ready && id <= team.threads; ++id) event_rouse(&team.seats[id].started);
    return size;
}

static void team_run(int size, int processors, void (*work)(void *, const frnn_worker *), void *argument) {
    const unsigned turn = atomic_load(&team.finished.value);
    team.work = work;
    team.argument = argument;
    team.size = size;
    team.spins = size <= processors ? SPINS : 0;
    team.measures = team.spins && frnn_now() - team.when > MEASURED_FOR;
    team_spread(size);
    atomic_store(&team.unfinished, size);
    for (int id = 1; id < size; ++id) event_advance(&team.seats[id].started);
    team_work(0);
    if (atomic_fetch_sub(&team.unfinished, 1) == 1) {
        event_advance(&team.finished);
    } else {
        event_wait(&team.finished, turn, &team.spins, NULL);
    }
}

/* Takes the team, unless it is at work; a stream of short jobs does not keep a long one from it. */
static int team_taken(int brief) {
    if (has_team) return 0;
    if (pthread_mutex_trylock(&team.busy) != 0) {
        if (brief || !atomic_load(&team.brief)) return 0;
        pthread_mutex_lock(&team.busy);
    }
    atomic_store(&team.brief, brief);
    return 1;
}

void frnn_run(int threads, int ready, void (*work)(void *argument, const frnn_worker *worker), void *argument) {
    const frnn_worker alone = {.size = 1, .caller = 1};
    const int most = ready < MAX_WORKERS ? ready : MAX_WORKERS;
    if (most > 1) team_ready();
    if (most > 1 && team_taken(threads <= 1)) {
        const int processors = frnn_processors(), size = workers_for(threads < most ? threads : most, most, processors);
        has_team = 1;
        if (size > 1) team_run(size, processors, work, argument);
        has_team = 0;
        pthread_mutex_unlock(&team.busy);
        if (size > 1) return;
    }
    work(argument, &alone);
}

double frnn_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

void frnn_barrier(int group, int members) {
    if (members > 1) barrier_wait(&team.groups[group], members, &team.spins);
}
