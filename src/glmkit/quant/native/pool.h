// Threads of our own. The caller takes pieces too and waits only for pieces that a thread has taken: a thread that the
// system does not run holds nobody up. Threads look for work for a quarter of a millisecond, then sleep.
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#define THREADS
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
typedef void run_piece(const void *work, int64_t i, int64_t pieces, void *buffer);
enum { MOST = 256, CLOSED = 0x7fffffff };
static struct {
  run_piece *run; const void *work; int64_t pieces; size_t need;
  _Atomic uint64_t next;                 // epoch and number of the next piece
  _Atomic int64_t done; _Atomic int32_t epoch, asleep, limit, failed, busy; int32_t workers, process;
  void *buffers[MOST]; size_t sizes[MOST];
} pool;

static void *buffer_of(int64_t thread, size_t need) {
  if (need <= pool.sizes[thread]) return pool.buffers[thread];
  free(pool.buffers[thread]); pool.buffers[thread] = malloc(need); pool.sizes[thread] = pool.buffers[thread] ? need : 0;
  return pool.buffers[thread];
}
static int run_alone(run_piece *run, const void *work, int64_t pieces, size_t need) {
  void *buffer = need ? malloc(need) : NULL;
  if (need && !buffer) return 1;
  for (int64_t i = 0; i < pieces; i++) run(work, i, pieces, buffer);
  free(buffer); return 0;
}
#ifdef THREADS
static void pause_briefly(void) {
#ifdef X86
  _mm_pause();
#elif defined(__aarch64__) && defined(GNU)
  __asm__ volatile("yield");
#endif
}
static void take_pieces(uint32_t epoch, int64_t thread) {
  for (;;) {
    uint64_t at = atomic_load(&pool.next); const int64_t i = (int64_t)(at & 0xffffffff);
    // The number of pieces is read before the exchange: while that succeeds, this epoch is not over and it is the right one.
    if ((uint32_t)(at >> 32) != epoch || i >= pool.pieces) return;
    if (!atomic_compare_exchange_weak(&pool.next, &at, at + 1)) continue;
    void *buffer = pool.need ? buffer_of(thread, pool.need) : NULL;
    if (pool.need && !buffer) atomic_store(&pool.failed, 1); else pool.run(pool.work, i, pool.pieces, buffer);
    atomic_fetch_add(&pool.done, 1);
  }
}
#if defined(__linux__)
static void sleep_until_not(int32_t seen) { syscall(SYS_futex, &pool.epoch, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0); }
static void wake(void) { syscall(SYS_futex, &pool.epoch, FUTEX_WAKE_PRIVATE, MOST, NULL, NULL, 0); }
#else
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static void sleep_until_not(int32_t seen) {
  pthread_mutex_lock(&lock);
  while (atomic_load(&pool.epoch) == seen) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}
static void wake(void) { pthread_mutex_lock(&lock); pthread_cond_broadcast(&changed); pthread_mutex_unlock(&lock); }
#endif
static int64_t nanoseconds(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }
static void *work_for_ever(void *number) {
  const int64_t thread = (int64_t)(intptr_t)number; int32_t seen = 0;
  for (;;) {
    for (const int64_t until = nanoseconds() + 250000; atomic_load(&pool.epoch) == seen && nanoseconds() < until;)
      for (int i = 0; i < 32 && atomic_load(&pool.epoch) == seen; i++) pause_briefly();
    if (atomic_load(&pool.epoch) == seen) {
      atomic_fetch_add(&pool.asleep, 1); sleep_until_not(seen); atomic_fetch_sub(&pool.asleep, 1);
      continue;
    }
    seen = atomic_load(&pool.epoch);
    if (thread < atomic_load(&pool.limit)) take_pieces((uint32_t)seen, thread);
  }
  return NULL;
}
static void start_workers(int32_t wanted) {
  if (pool.workers >= wanted) return;
  sigset_t all, before; sigfillset(&all); pthread_sigmask(SIG_SETMASK, &all, &before);  // signals belong to the program
  for (pthread_t thread; pool.workers < wanted; pool.workers++) {
    if (pthread_create(&thread, NULL, work_for_ever, (void *)(intptr_t)(pool.workers + 1))) break;
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}
static int run_pieces(run_piece *run, const void *work, int64_t pieces, int64_t threads, size_t need) {
  if (threads > MOST) threads = MOST;
  const int32_t process = (int32_t)getpid();
  if (pool.process != process) {  // after a fork there are no workers, and nobody who holds the pool
    pool.process = process; pool.workers = 0; atomic_store(&pool.asleep, 0); atomic_store(&pool.busy, 0);
  }
  int32_t is_free = 0;
  if (threads <= 1 || pieces <= 1 || !atomic_compare_exchange_strong(&pool.busy, &is_free, 1)) return run_alone(run, work, pieces, need);
  start_workers((int32_t)threads - 1);
  const int32_t epoch = atomic_load(&pool.epoch) + 1;
  atomic_store(&pool.next, (uint64_t)(uint32_t)epoch << 32 | CLOSED);  // a late thread of the epoch before takes nothing
  pool.run = run; pool.work = work; pool.pieces = pieces; pool.need = need;
  atomic_store(&pool.limit, (int32_t)threads); atomic_store(&pool.failed, 0); atomic_store(&pool.done, 0);
  atomic_store(&pool.next, (uint64_t)(uint32_t)epoch << 32);
  atomic_store(&pool.epoch, epoch);
  if (atomic_load(&pool.asleep)) wake();
  take_pieces((uint32_t)epoch, 0);
  for (int i = 0; atomic_load(&pool.done) < pieces; i++) if (i < 2000) pause_briefly(); else sched_yield();
  const int failed = atomic_load(&pool.failed);
  atomic_store(&pool.busy, 0);
  return failed;
}
#else
static int run_pieces(run_piece *run, const void *work, int64_t pieces, int64_t threads, size_t need) {
  (void)threads; return run_alone(run, work, pieces, need);
}
#endif
