/* The least that a lossless greeting can cost: epoll, accept4, send, shutdown, recv, close.
 *
 * Invariants:
 * - It does nothing that a lossless greeting does not need, so all that another server costs more is its own. It
 *   has no log, no counters and no limits.
 * - Connections are accepted in batches. Under load, the listening socket rests for a moment between two of them,
 *   because a wake-up for each connection costs more than the connection.
 * - The greeting and the end of stream leave in one segment (tcp(7), MSG_MORE).
 * - A socket is closed when its client has closed, or after some seconds. What the client sends until then is
 *   read, because a close with unread input resets the connection (RFC 1122, 4.2.2.13).
 *
 * usage: floor PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char greeting[] = "Thank you for connecting";

#define BATCH 64
#define LOADED 8          /* connections in one batch that are a sign of load */
#define MOMENT 0.001      /* seconds between two batches under load */
#define FIRST_CHECK 0.004 /* seconds until a socket is read, at least; twice as long the next time */
#define MAX_FIRST_CHECK 0.064 /* about */

/* A socket that was half-closed, in the list of those that are checked after the same time. */
struct lingering {
    int sock;
    double due;
    struct lingering *next;
};

struct list {
    struct lingering *first, **end;
};

/* The list at `n` has the sockets that are read first_check * 2^n seconds after they came there. The last ones are
 * closed two seconds after they were greeted, or later. */
#define LISTS 9
static struct list lists[LISTS];
static struct lingering *unused;
static double first_check = FIRST_CHECK;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_on(int port)
{
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };

    if (sock < 0)
        die("socket");
    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(sock, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (listen(sock, 4096) < 0)
        die("listen");
    return sock;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void put(struct lingering *one, int n, double at)
{
    one->due = at + first_check * (1 << n);
    one->next = NULL;
    *lists[n].end = one;
    lists[n].end = &one->next;
}

/* Greet a client, and let its socket linger. */
static void greet(int client, double at)
{
    struct lingering *one = unused;

    send(client, greeting, sizeof greeting - 1, MSG_MORE | MSG_NOSIGNAL | MSG_DONTWAIT);
    if (shutdown(client, SHUT_WR) < 0) { /* it was reset */
        close(client);
        return;
    }
    if (one != NULL)
        unused = one->next;
    else if ((one = malloc(sizeof *one)) == NULL)
        die("malloc");
    one->sock = client;
    put(one, 0, at);
}

/* Discard what the client sent; false if there is no more to come. */
static int talks(int client)
{
    static char discarded[65536];
    ssize_t size;

    for (int reads = 0; reads < 16; reads++)
        if ((size = recv(client, discarded, sizeof discarded, MSG_DONTWAIT)) <= 0)
            return size < 0 && errno == EAGAIN;
    return 1;
}

/* Most of the sockets that were read for the first time were `silent`, or not: their clients take longer than
 * first_check to close, or not. */
static void adapt(int silent, int total)
{
    if (total >= LOADED && silent * 2 > total && first_check < MAX_FIRST_CHECK)
        first_check *= 2;
    else if (total >= LOADED && silent * 2 <= total && first_check > FIRST_CHECK)
        first_check *= 15.0 / 16;
}

/* Read the sockets that are due; returns the milliseconds until the next one is, or -1. */
static int check(double at)
{
    double next = INFINITY;

    for (int n = 0; n < LISTS; n++) {
        int total = 0, silent = 0;
        while (lists[n].first != NULL && lists[n].first->due <= at) {
            struct lingering *one = lists[n].first;
            if ((lists[n].first = one->next) == NULL)
                lists[n].end = &lists[n].first;
            total++;
            if (talks(one->sock) && n + 1 < LISTS) {
                silent++;
                put(one, n + 1, at);
            } else {
                close(one->sock);
                one->next = unused;
                unused = one;
            }
        }
        if (n == 0)
            adapt(silent, total);
        if (lists[n].first != NULL && lists[n].first->due < next)
            next = lists[n].first->due;
    }
    return isinf(next) ? -1 : 1 + (int)((next - at) * 1e3);
}

int main(int argc, char **argv)
{
    int sock = listen_on(argc > 1 ? atoi(argv[1]) : 0);
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};

    if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, sock, &event) < 0)
        die("epoll");
    for (int n = 0; n < LISTS; n++)
        lists[n].end = &lists[n].first;
    for (;;) {
        int ready = epoll_wait(poll, &event, 1, check(now()));
        int accepted = 0;
        double at = now();

        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int client; ready > 0 && accepted < BATCH; accepted++) {
            if ((client = accept4(sock, NULL, NULL, 0)) < 0)
                break;
            greet(client, at);
        }
        if (accepted >= LOADED && accepted < BATCH)
            nanosleep(&(struct timespec){.tv_nsec = (long)(MOMENT * 1e9)}, NULL);
    }
}
