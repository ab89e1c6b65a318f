/* Fault injection: system calls that fail on request.
 *
 * Loaded with LD_PRELOAD into a process that calls libc, as CPython and uvloop do. The file named by
 * FAULTS_FILE is shared memory with the test. It has one `struct plan` for each call below. The test fills
 * it in while the server runs, and this library counts the faults that it injected. Only stream sockets
 * with a name are affected: TCP, and Unix sockets that were accepted. Pipes, files and the event loop's
 * socket pair are not. Creating a process counts as a call: fork(2), through which all of them go.
 *
 * The real call is made with syscall(2), which depends on no part of libc that may not be initialized.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct plan {
    char name[12];     /* of the call; written here, so that the test need not know the order */
    int32_t skip;      /* the number of calls to pass through first */
    int32_t left;      /* the number of calls to fail after that */
    int32_t error;     /* the errno to fail with */
    int32_t part;      /* if not 0, the first of them sends this many bytes instead of failing */
    int32_t delivered; /* the number of faults injected so far */
};

enum call { ACCEPT, SEND, RECV, SHUTDOWN, GETPEERNAME, SPAWN, CALLS };

static const char *const names[CALLS] = {"accept", "send", "recv", "shutdown", "getpeername",
                                         "spawn"};
static struct plan *plans;

__attribute__((constructor)) static void open_plans(void)
{
    const char *path = getenv("FAULTS_FILE");
    size_t size = CALLS * sizeof(struct plan);
    int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    void *file = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
        file = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED) { /* without faults, the test would pass for the wrong reason */
        perror("faults: FAULTS_FILE");
        abort();
    }
    close(fd);
    plans = file;
    for (int call = 0; call < CALLS; call++)
        strncpy(plans[call].name, names[call], sizeof plans[call].name - 1);
}

static bool can_be_hit(int fd)
{
    int before = errno, type = 0;
    struct sockaddr_storage name;
    socklen_t type_size = sizeof type, size = sizeof name;
    bool found = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) == 0 && type == SOCK_STREAM &&
                 getsockname(fd, (struct sockaddr *)&name, &size) == 0 && size > sizeof name.ss_family;
    errno = before;
    return found;
}

/* Decrement a number that the test may change concurrently. Returns false if it is not above 0. */
static bool take(int32_t *number)
{
    int32_t seen = __atomic_load_n(number, __ATOMIC_SEQ_CST);
    while (seen > 0)
        if (__atomic_compare_exchange_n(number, &seen, seen - 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return true;
    return false;
}

/* Returns true if this call must fail, with errno set, or if *part is set, succeed with that many bytes.
 * fd is negative for a call without a descriptor. */
static bool hit(enum call call, int fd, size_t *part)
{
    struct plan *plan = plans ? &plans[call] : NULL;
    if (!plan || __atomic_load_n(&plan->left, __ATOMIC_SEQ_CST) <= 0 || (fd >= 0 && !can_be_hit(fd)))
        return false;
    if (take(&plan->skip) || !take(&plan->left))
        return false;
    __atomic_add_fetch(&plan->delivered, 1, __ATOMIC_SEQ_CST);
    if (part)
        *part = (size_t)__atomic_exchange_n(&plan->part, 0, __ATOMIC_SEQ_CST);
    errno = plan->error;
    return true;
}

/* Common to all calls that send. Only the first buffer can be sent in part. */
static bool send_hit(int fd, const void *data, size_t size, int flags, ssize_t *sent)
{
    size_t part = 0;
    if (!hit(SEND, fd, &part))
        return false;
    *sent = part ? syscall(SYS_sendto, fd, data, part < size ? part : size, flags, NULL, 0) : -1;
    return true;
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    return hit(ACCEPT, fd, NULL) ? -1 : (int)syscall(SYS_accept4, fd, address, size, flags);
}

int accept(int fd, struct sockaddr *address, socklen_t *size)
{
    return accept4(fd, address, size, 0);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t to_size)
{
    ssize_t sent;
    if (send_hit(fd, data, size, flags, &sent))
        return sent;
    return syscall(SYS_sendto, fd, data, size, flags, to, to_size);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    return sendto(fd, data, size, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t sent;
    if (message->msg_iovlen > 0 &&
        send_hit(fd, message->msg_iov->iov_base, message->msg_iov->iov_len, flags, &sent))
        return sent;
    return syscall(SYS_sendmsg, fd, message, flags);
}

ssize_t write(int fd, const void *data, size_t size)
{
    ssize_t sent;
    return send_hit(fd, data, size, MSG_NOSIGNAL, &sent) ? sent : syscall(SYS_write, fd, data, size);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    ssize_t sent;
    if (count > 0 && send_hit(fd, pieces->iov_base, pieces->iov_len, MSG_NOSIGNAL, &sent))
        return sent;
    return syscall(SYS_writev, fd, pieces, count);
}

ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *from_size)
{
    return hit(RECV, fd, NULL) ? -1 : syscall(SYS_recvfrom, fd, data, size, flags, from, from_size);
}

ssize_t recv(int fd, void *data, size_t size, int flags)
{
    return recvfrom(fd, data, size, flags, NULL, NULL);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return hit(RECV, fd, NULL) ? -1 : syscall(SYS_recvmsg, fd, message, flags);
}

ssize_t read(int fd, void *data, size_t size)
{
    return hit(RECV, fd, NULL) ? -1 : syscall(SYS_read, fd, data, size);
}

int shutdown(int fd, int how)
{
    return hit(SHUTDOWN, fd, NULL) ? -1 : (int)syscall(SYS_shutdown, fd, how);
}

int getpeername(int fd, struct sockaddr *address, socklen_t *size)
{
    return hit(GETPEERNAME, fd, NULL) ? -1 : (int)syscall(SYS_getpeername, fd, address, size);
}

pid_t fork(void)
{
    if (hit(SPAWN, -1, NULL))
        return -1;
    /* libc's fork() and not the system call: it resets its locks in the child. */
    pid_t (*real)(void) = (pid_t(*)(void))dlsym(RTLD_NEXT, "fork");
    return real();
}

/* A child of vfork(2) shares our stack, so vfork(2) cannot be called from here. If it fails, Python's
 * subprocess calls fork(2) instead. */
pid_t vfork(void)
{
    errno = EINVAL;
    return -1;
}
