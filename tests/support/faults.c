/* Fault injection: system calls that fail on request.
 *
 * Loaded with LD_PRELOAD into a process that calls libc, as CPython and uvloop do. The file named by
 * FAULTS_FILE is shared memory with the test. It has one `struct plan` for each call below and each kind of
 * descriptor. The test fills it in while the server runs, and this library counts the faults that it injected
 * and, if FAULTS_COUNT is set, all calls. A plan is named after the call, and after the kind behind a point:
 * "send" is about streams with a name (TCP, and Unix sockets that were accepted) and "spawn" has no
 * descriptor, but "send.udp" is about datagrams. Of files, only those in FAULTS_DIR and in /proc count.
 * Creating a process counts as a call: fork(2), through which all of them go.
 *
 * The real call is made with syscall(2), or found with dlsym(3) where libc does more than the system call. Not
 * reached are calls that libc makes itself, as fread(3) does, and those of an io_uring.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

struct plan {
    char name[20];     /* of the call; written here, so that the test need not know the order */
    int32_t skip;      /* the number of calls to pass through first */
    int32_t left;      /* the number of calls to fail after that */
    int32_t error;     /* the errno to fail with */
    int32_t part;      /* if not 0, the first of them sends this many bytes instead of failing */
    int32_t delivered; /* the number of faults injected so far */
    int32_t seen;      /* the number of calls so far, if they are counted */
};

#define CALL_LIST(X) \
    X(ACCEPT, "accept") X(SEND, "send") X(RECV, "recv") X(SHUTDOWN, "shutdown") \
    X(GETPEERNAME, "getpeername") X(SPAWN, "spawn") X(GETSOCKNAME, "getsockname") \
    X(SETSOCKOPT, "setsockopt") X(GETSOCKOPT, "getsockopt") X(SOCKET, "socket") X(BIND, "bind") \
    X(LISTEN, "listen") X(SOCKETPAIR, "socketpair") X(EPOLL_CREATE, "epoll_create") \
    X(EPOLL_ADD, "epoll_add") X(EPOLL_MODIFY, "epoll_modify") X(EPOLL_WAIT, "epoll_wait") X(POLL, "poll") \
    X(EVENTFD, "eventfd") X(PIPE, "pipe") X(MEMFD, "memfd_create") X(PIDFD, "pidfd_open") X(OPEN, "open") \
    X(CLOSE, "close") X(DUP, "dup") X(NONBLOCK, "nonblock") X(MAP, "mmap") X(THREAD, "thread") \
    X(EXEC, "exec") X(WAIT, "wait") X(CHMOD, "chmod") X(UNLINK, "unlink")
#define IDENTIFIER(identifier, name) identifier,
#define NAME(identifier, name) name,
enum call { CALL_LIST(IDENTIFIER) CALLS };
static const char *const call_names[CALLS] = {CALL_LIST(NAME)};

/* NOTIFY is the socket of sd_notify(3), PAIR one of socketpair(2), MEMORY a memfd. */
enum kind { STREAM, UDP, NOTIFY, PAIR, FIFO, PATH, MEMORY, OTHER, KINDS };
static const char *const kind_names[KINDS] = {"", ".udp", ".notify", ".pair", ".pipe", ".file", ".memory",
                                              ".other"};

static struct plan (*plans)[KINDS];
static bool counting;
static const char *directory;

/* Also called by a test whose process has forked, with an environment of its own. */
__attribute__((constructor)) void faults_open(void)
{
    const char *path = getenv("FAULTS_FILE");
    size_t size = CALLS * sizeof *plans;
    if (!path)
        return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    void *file = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
        file = (void *)syscall(SYS_mmap, NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED) { /* without faults, the test would pass for the wrong reason */
        perror("faults: FAULTS_FILE");
        abort();
    }
    syscall(SYS_close, fd);
    struct plan(*table)[KINDS] = file;
    for (int call = 0; call < CALLS; call++)
        for (int kind = 0; kind < KINDS; kind++)
            snprintf(table[call][kind].name, sizeof table[call][kind].name, "%s%s", call_names[call],
                     kind_names[kind]);
    counting = getenv("FAULTS_COUNT") != NULL;
    directory = getenv("FAULTS_DIR");
    plans = table;
}

static bool path_counts(const char *path)
{
    return (directory && strncmp(path, directory, strlen(directory)) == 0) ||
           strncmp(path, "/proc/s", strlen("/proc/s")) == 0; /* /proc/self and /proc/sys */
}

/* The kind of a descriptor; KINDS for one that counts for nothing. */
static enum kind kind_of(int fd)
{
    struct sockaddr_storage name = {0};
    struct stat status;
    char link[32], path[256] = "";
    int type = 0;
    socklen_t type_size = sizeof type, size = sizeof name;
    if (syscall(SYS_newfstatat, fd, "", &status, AT_EMPTY_PATH) < 0)
        return KINDS;
    if (S_ISFIFO(status.st_mode))
        return FIFO;
    if (!S_ISSOCK(status.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if (syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1) < 0)
            return KINDS;
        if (strncmp(path, "/memfd:", 7) == 0)
            return MEMORY;
        if (strncmp(path, "anon_inode:", 11) == 0)
            return OTHER;
        return path_counts(path) ? PATH : KINDS;
    }
    if (syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &type_size) < 0 ||
        syscall(SYS_getsockname, fd, &name, &size) < 0)
        return KINDS;
    if (type == SOCK_STREAM)
        return size > sizeof name.ss_family ? STREAM : PAIR;
    return name.ss_family == AF_UNIX ? NOTIFY : UDP;
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

static bool armed(enum call call)
{
    if (counting)
        return true;
    for (int kind = 0; kind < KINDS; kind++)
        if (__atomic_load_n(&plans[call][kind].left, __ATOMIC_SEQ_CST) > 0)
            return true;
    return false;
}

/* Returns true if this call must fail, with errno set, or if *part is set, succeed with that many bytes.
 * fd is negative for a call without a descriptor. */
static bool hit(enum call call, int fd, size_t *part)
{
    if (!plans || !armed(call))
        return false;
    int before = errno;
    enum kind kind = fd < 0 ? STREAM : kind_of(fd);
    errno = before;
    if (kind == KINDS)
        return false;
    struct plan *plan = &plans[call][kind];
    if (counting)
        __atomic_add_fetch(&plan->seen, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&plan->left, __ATOMIC_SEQ_CST) <= 0 || take(&plan->skip) || !take(&plan->left))
        return false;
    __atomic_add_fetch(&plan->delivered, 1, __ATOMIC_SEQ_CST);
    if (part)
        *part = (size_t)__atomic_exchange_n(&plan->part, 0, __ATOMIC_SEQ_CST);
    errno = plan->error;
    return true;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* libuv has no answer but abort() to some errors of what it calls for itself. */
static bool is_libuv(const void *caller)
{
    Dl_info found;
    return dladdr(caller, &found) && found.dli_fname && strstr(found.dli_fname, "uvloop");
}
#define OF_LIBUV is_libuv(__builtin_return_address(0))

/* A function that fails if it is hit, and else is the system call with this number and these arguments. */
#define WRAPPER(function, call, fd, number, ...) \
    function { return hit(call, fd, NULL) ? -1 : syscall(number, __VA_ARGS__); }
#define WRAPPER_NOT_OF_LIBUV(function, call, fd, number, ...) \
    function { return !OF_LIBUV && hit(call, fd, NULL) ? -1 : syscall(number, __VA_ARGS__); }

/* The last argument. */
#define LAST_ARGUMENT(type, name, before) \
    va_list rest;                         \
    va_start(rest, before);               \
    type name = va_arg(rest, type);       \
    va_end(rest);

/* -- accepting, sending, receiving --------------------------------------------------------------------- */

WRAPPER(int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags), ACCEPT, fd, SYS_accept4,
        fd, address, size, flags)

int accept(int fd, struct sockaddr *address, socklen_t *size) { return accept4(fd, address, size, 0); }

/* Common to all calls that send. Only the first buffer can be sent in part. */
static bool send_hit(int fd, const void *data, size_t size, int flags, ssize_t *sent)
{
    size_t part = 0;
    if (!hit(SEND, fd, &part))
        return false;
    *sent = part ? syscall(SYS_sendto, fd, data, part < size ? part : size, flags, NULL, 0) : -1;
    return true;
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
    if (OF_LIBUV && kind_of(fd) == FIFO)
        return syscall(SYS_write, fd, data, size);
    return send_hit(fd, data, size, MSG_NOSIGNAL, &sent) ? sent : syscall(SYS_write, fd, data, size);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    ssize_t sent;
    if (count > 0 && send_hit(fd, pieces->iov_base, pieces->iov_len, MSG_NOSIGNAL, &sent))
        return sent;
    return syscall(SYS_writev, fd, pieces, count);
}

WRAPPER(ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *length),
        RECV, fd, SYS_recvfrom, fd, data, size, flags, from, length)
WRAPPER(ssize_t recvmsg(int fd, struct msghdr *message, int flags), RECV, fd, SYS_recvmsg, fd, message, flags)
WRAPPER(ssize_t read(int fd, void *data, size_t size), RECV, fd, SYS_read, fd, data, size)

ssize_t recv(int fd, void *data, size_t size, int flags)
{
    return recvfrom(fd, data, size, flags, NULL, NULL);
}

/* -- sockets ------------------------------------------------------------------------------------------- */

WRAPPER(int shutdown(int fd, int how), SHUTDOWN, fd, SYS_shutdown, fd, how)
WRAPPER(int getpeername(int fd, struct sockaddr *address, socklen_t *size), GETPEERNAME, fd, SYS_getpeername,
        fd, address, size)
WRAPPER(int getsockname(int fd, struct sockaddr *address, socklen_t *size), GETSOCKNAME, fd, SYS_getsockname,
        fd, address, size)
WRAPPER_NOT_OF_LIBUV(int setsockopt(int fd, int level, int name, const void *value, socklen_t size), SETSOCKOPT,
                     fd, SYS_setsockopt, fd, level, name, value, size)
WRAPPER(int getsockopt(int fd, int level, int name, void *value, socklen_t *size), GETSOCKOPT, fd,
        SYS_getsockopt, fd, level, name, value, size)
WRAPPER(int socket(int family, int type, int protocol), SOCKET, -1, SYS_socket, family, type, protocol)
WRAPPER(int socketpair(int family, int type, int protocol, int fds[2]), SOCKETPAIR, -1, SYS_socketpair, family,
        type, protocol, fds)
WRAPPER(int bind(int fd, const struct sockaddr *address, socklen_t size), BIND, -1, SYS_bind, fd, address,
        size)
WRAPPER(int listen(int fd, int backlog), LISTEN, -1, SYS_listen, fd, backlog)

int ioctl(int fd, unsigned long request, ...)
{
    LAST_ARGUMENT(void *, argument, request)
    bool fails = request == 0x5421 /* FIONBIO */ && hit(NONBLOCK, fd, NULL);
    return fails ? -1 : syscall(SYS_ioctl, fd, request, argument);
}

/* -- descriptors --------------------------------------------------------------------------------------- */

/* As after an error of the real one, the descriptor is closed: close(2). */
int close(int fd)
{
    if (!hit(CLOSE, fd, NULL))
        return syscall(SYS_close, fd);
    int error = errno;
    syscall(SYS_close, fd);
    errno = error;
    return -1;
}

#define FCNTL(name)                                                         \
    int name(int fd, int command, ...)                                      \
    {                                                                       \
        LAST_ARGUMENT(void *, argument, command)                            \
        bool duplicates = command == F_DUPFD || command == F_DUPFD_CLOEXEC; \
        return duplicates && hit(DUP, -1, NULL) ? -1 : syscall(SYS_fcntl, fd, command, argument); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)
WRAPPER(int dup(int fd), DUP, -1, SYS_dup, fd)
WRAPPER(int eventfd(unsigned value, int flags), EVENTFD, -1, SYS_eventfd2, value, flags)
WRAPPER(int memfd_create(const char *name, unsigned flags), MEMFD, -1, SYS_memfd_create, name, flags)

WRAPPER_NOT_OF_LIBUV(int pipe2(int fds[2], int flags), PIPE, -1, SYS_pipe2, fds, flags)

#define MMAP(name)                                                                                \
    void *name(void *address, size_t size, int protection, int flags, int fd, off_t offset)       \
    {                                                                                             \
        bool fails = fd >= 0 && hit(MAP, fd, NULL);                                               \
        return (void *)(fails ? -1 : syscall(SYS_mmap, address, size, protection, flags, fd, offset)); \
    }
MMAP(mmap)
MMAP(mmap64)

/* -- events -------------------------------------------------------------------------------------------- */

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    enum call call = operation == EPOLL_CTL_ADD ? EPOLL_ADD : EPOLL_MODIFY;
    bool can_fail = operation != EPOLL_CTL_DEL && !OF_LIBUV;
    return can_fail && hit(call, fd, NULL) ? -1 : syscall(SYS_epoll_ctl, epoll, operation, fd, event);
}

WRAPPER(int epoll_create1(int flags), EPOLL_CREATE, -1, SYS_epoll_create1, flags)
WRAPPER(int epoll_wait(int epoll, struct epoll_event *events, int count, int timeout), EPOLL_WAIT, -1,
        SYS_epoll_wait, epoll, events, count, timeout)
/* The last argument is the size of the kernel's signal sets in bytes. */
WRAPPER(int epoll_pwait(int epoll, struct epoll_event *events, int count, int timeout, const sigset_t *mask),
        EPOLL_WAIT, -1, SYS_epoll_pwait, epoll, events, count, timeout, mask, 8)
WRAPPER(int poll(struct pollfd *fds, nfds_t count, int timeout), POLL, -1, SYS_poll, fds, count, timeout)

/* -- files --------------------------------------------------------------------------------------------- */

static bool open_hit(const char *path) { return path_counts(path) && hit(OPEN, -1, NULL); }

#define OPEN_FILE(name)                                                   \
    int name(const char *path, int flags, ...)                            \
    {                                                                     \
        LAST_ARGUMENT(unsigned, mode, flags)                              \
        return open_hit(path) ? -1 : syscall(SYS_openat, AT_FDCWD, path, flags, mode); \
    }
#define OPEN_STREAM(type, name, parameters, ...)                                              \
    type *name parameters                                                                     \
    {                                                                                         \
        return open_hit(path) ? NULL : REAL(name)(__VA_ARGS__); \
    }
OPEN_FILE(open)
OPEN_FILE(open64)
OPEN_STREAM(FILE, fopen, (const char *path, const char *mode), path, mode)
OPEN_STREAM(FILE, fopen64, (const char *path, const char *mode), path, mode)
OPEN_STREAM(DIR, opendir, (const char *path), path)
WRAPPER(int chmod(const char *path, mode_t mode), CHMOD, -1, SYS_chmod, path, mode)
WRAPPER(int unlink(const char *path), UNLINK, -1, SYS_unlink, path)

/* -- processes and threads ----------------------------------------------------------------------------- */

pid_t fork(void) { return hit(SPAWN, -1, NULL) ? -1 : REAL(fork)(); }

/* A child of vfork(2) shares our stack, so vfork(2) cannot be called from here. If it fails, Python's
 * subprocess calls fork(2) instead. */
pid_t vfork(void)
{
    errno = EINVAL;
    return -1;
}

WRAPPER(int execve(const char *path, char *const arguments[], char *const variables[]), EXEC, -1, SYS_execve,
        path, arguments, variables)
WRAPPER(pid_t waitpid(pid_t pid, int *status, int options), WAIT, -1, SYS_wait4, pid, status, options, NULL)

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *argument)
{
    return hit(THREAD, -1, NULL) ? errno : REAL(pthread_create)(thread, how, start, argument);
}

/* pidfd_open(2) has no wrapper in older versions of libc: CPython calls it by its number, and we all others. */
long syscall(long number, ...)
{
    static long (*real)(long, ...);
    va_list rest;
    long a[6];
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_pidfd_open && hit(PIDFD, -1, NULL))
        return -1;
    if (!real)
        real = REAL(syscall);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
