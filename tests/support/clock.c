/* A time of day that jumps on request.
 *
 * Loaded with LD_PRELOAD into a process that reads CLOCK_REALTIME through libc, as CPython does. The file named
 * by CLOCK_FILE is shared memory with the test: one 64-bit integer, the seconds to add. Other clocks do not
 * jump in reality, and not here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const int64_t *seconds;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void open_clock(void)
{
    const char *path = getenv("CLOCK_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *file = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *seconds, PROT_READ, MAP_SHARED, fd, 0);
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file == MAP_FAILED || !real) { /* without jumps, the test would pass for the wrong reason */
        perror("clock: CLOCK_FILE");
        abort();
    }
    close(fd);
    seconds = file;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = real ? real(clock, now) : -1;
    if (result == 0 && clock == CLOCK_REALTIME && seconds)
        now->tv_sec += __atomic_load_n(seconds, __ATOMIC_SEQ_CST);
    return result;
}
