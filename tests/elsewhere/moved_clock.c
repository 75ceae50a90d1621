// Preloaded, it moves the wall clock of a process and of all it starts by MOVED_CLOCK_SECONDS
// seconds (a whole number, may be negative). Monotonic clocks, sleeps, time-outs and the times of
// files stay as they are: a program sees another day, at the usual speed.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long moved_seconds(void) {
  static int known;
  static long seconds;
  if (!known) {
    const char *text = getenv("MOVED_CLOCK_SECONDS");
    seconds = text ? strtol(text, NULL, 10) : 0;
    known = 1;
  }
  return seconds;
}

static int real_clock(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  return real(clock, now);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  const int failed = real_clock(clock, now);
  const int wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI;
  if (!failed && wall) now->tv_sec += moved_seconds();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec precise;
  (void)zone;  // obsolete, and always zero on Linux
  if (real_clock(CLOCK_REALTIME, &precise)) return -1;
  now->tv_sec = precise.tv_sec + moved_seconds();
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *result) {
  struct timespec now;
  if (real_clock(CLOCK_REALTIME, &now)) return (time_t)-1;
  now.tv_sec += moved_seconds();
  if (result) *result = now.tv_sec;
  return now.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
  if (base != TIME_UTC || clock_gettime(CLOCK_REALTIME, now)) return 0;
  return base;
}
