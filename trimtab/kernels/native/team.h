// Work sharing between the threads of one OpenMP region.
//
// Threads take pieces of a loop as they come, and a loop ends when its pieces are done, not when every thread has
// arrived: on a busy machine a thread that has lost its core costs its share, while OpenMP's own loops, some 300 in a
// decoder's step, would each wait for it.
#pragma once
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

typedef void Task(void *argument, int index, int thread);

typedef struct {
  Task *task;
  void *argument;
  int threads, count, grain, pieces;
  _Atomic uint64_t ticket;  // number of the loop << 32 | pieces that nobody has taken
  _Atomic int unfinished;   // pieces
  _Atomic int over;
} Team;

static inline void pause_or_yield(int *waited) {
  if (++*waited % 128 == 0) sched_yield();
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

// Whether there may be more to take.
static inline int take_piece(Team *team, int thread) {
  uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_acquire);
  if ((uint32_t)ticket == 0) return 0;
  // The number of the loop is part of the ticket, so nobody takes a piece of a later loop by mistake. Once a piece is
  // taken, the loop and its fields stay until that piece is done.
  if (!atomic_compare_exchange_weak_explicit(&team->ticket, &ticket, ticket - 1, memory_order_acq_rel,
                                             memory_order_relaxed))
    return 1;
  const int first = (team->pieces - (int)(uint32_t)ticket) * team->grain;
  const int end = first + team->grain < team->count ? first + team->grain : team->count;
  for (int i = first; i < end; i++) team->task(team->argument, i, thread);
  atomic_fetch_sub_explicit(&team->unfinished, 1, memory_order_release);
  return 1;
}

// Run a task for 0 .. count - 1; called by thread 0.
static inline void share(Team *team, Task *task, void *argument, int count) {
  if (team->threads == 1 || count <= 1) {
    for (int i = 0; i < count; i++) task(argument, i, 0);
    return;
  }
  const int most = 8 * team->threads;
  team->task = task, team->argument = argument, team->count = count;
  team->grain = (count + most - 1) / most;
  team->pieces = (count + team->grain - 1) / team->grain;
  atomic_store_explicit(&team->unfinished, team->pieces, memory_order_relaxed);
  const uint64_t loop = (atomic_load_explicit(&team->ticket, memory_order_relaxed) >> 32) + 1;
  atomic_store_explicit(&team->ticket, loop << 32 | (uint32_t)team->pieces, memory_order_release);
  while (take_piece(team, 0)) {
  }
  for (int waited = 0; atomic_load_explicit(&team->unfinished, memory_order_acquire);) pause_or_yield(&waited);
}

// What the other threads do until the step is over.
static inline void help(Team *team, int thread) {
  for (int waited = 0; !atomic_load_explicit(&team->over, memory_order_acquire);)
    if (!take_piece(team, thread)) pause_or_yield(&waited);
}

// What thread 0 of a team does, the other threads helping with every loop that it shares.
typedef void Work(Team *team, void *argument);

static inline void run_team(int threads, Work *work, void *argument) {
  Team team = {.threads = threads};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int thread = 0;
#ifdef _OPENMP
    extern int omp_get_thread_num(void);
    thread = omp_get_thread_num();
#endif
    if (thread) {
      help(&team, thread);
    } else {
      work(&team, argument);
      atomic_store_explicit(&team.over, 1, memory_order_release);
    }
  }
}
