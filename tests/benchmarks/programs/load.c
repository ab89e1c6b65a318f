/* Closed-loop clients: connect, perhaps speak, read to the end of stream, close, begin the next.
 *
 * The law: a client is greeted if it got every byte and an orderly end of stream, and lost otherwise.
 * Each one ends in exactly one class: greeted, reset, empty (an end without a byte), short (an end
 * before the last byte), failed (no connection, or still waiting when nothing had happened for PATIENCE).
 * The time to the greeting runs from just before connect to the first byte.
 *
 * usage: load PORT CLIENTS TOTAL SAY EXPECT
 *   CLIENTS at a time, TOTAL of them, on the loopback; each sends SAY bytes before it reads, and expects
 *   EXPECT bytes. Prints one JSON object; times are in microseconds. load.py is the same in Python.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 5000 /* milliseconds */
#define EVENTS 256

struct client {
    int sock;
    long received;
    double began, first_byte;
};

static struct sockaddr_in server;
static int poll_fd;
static long total, say, expect;
static long started, greeted, reset, empty, cut_short, failed;
static double *times;
static char *words;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* The class of a client that an error has ended. */
static long *loss(int error)
{
    return error == ECONNRESET || error == EPIPE ? &reset : &failed;
}

/* Connect, and send what is to be said; false if that failed. One who speaks first does not give the server
 * the time to go first: such a client waits for its handshake (at most PATIENCE) and speaks at once. */
static int connect_and_speak(struct client *c)
{
    c->sock = socket(AF_INET, SOCK_STREAM | (say ? 0 : SOCK_NONBLOCK), 0);
    if (c->sock < 0)
        die("socket");
    if (say) {
        struct timeval patience = {.tv_sec = PATIENCE / 1000};
        setsockopt(c->sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    }
    if (connect(c->sock, (struct sockaddr *)&server, sizeof server) < 0 && (say || errno != EINPROGRESS)) {
        if (errno == EADDRNOTAVAIL)
            die("connect"); /* out of ports: our fault, not the server's */
        return 0;
    }
    return say == 0 || send(c->sock, words, say, MSG_NOSIGNAL) == say;
}

/* Begin the next client in this place, unless all have begun. */
static void begin(struct client *c)
{
    while (started < total) {
        started++;
        c->received = 0;
        c->began = now();
        if (connect_and_speak(c)) {
            struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
            if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->sock, &event) < 0)
                die("epoll_ctl");
            return;
        }
        ++*loss(errno);
        close(c->sock);
    }
}

static void end(struct client *c, long *class)
{
    ++*class;
    close(c->sock);
    begin(c);
}

static void listen_to(struct client *c)
{
    char buffer[4096];
    for (;;) {
        ssize_t size = recv(c->sock, buffer, sizeof buffer, MSG_DONTWAIT);
        if (size > 0) {
            if (c->received == 0)
                c->first_byte = now();
            c->received += size;
            continue;
        }
        if (size < 0 && errno == EAGAIN)
            return;
        if (size < 0) {
            end(c, loss(errno));
        } else if (c->received == expect) {
            times[greeted] = c->first_byte - c->began;
            end(c, &greeted);
        } else {
            end(c, c->received == 0 ? &empty : &cut_short);
        }
        return;
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The time that a share of the greeted did not exceed. */
static double percentile(double share)
{
    long rank = (long)(share * greeted + 0.9999999); /* the nearest rank, rounded up */
    return greeted == 0 ? 0 : times[rank < 1 ? 0 : rank - 1];
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: load PORT CLIENTS TOTAL SAY EXPECT\n");
        return 2;
    }
    long clients = atol(argv[2]);
    total = atol(argv[3]), say = atol(argv[4]), expect = atol(argv[5]);
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(argv[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    poll_fd = epoll_create1(0);
    struct client *room = calloc(clients, sizeof *room);
    times = malloc((total + 1) * sizeof *times);
    words = malloc(say + 1);
    if (poll_fd < 0 || room == NULL || times == NULL || words == NULL)
        die("start");
    memset(words, 'x', say);

    double start = now(), stop;
    for (long i = 0; i < clients; i++)
        begin(&room[i]);
    while (greeted + reset + empty + cut_short + failed < total) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poll_fd, events, EVENTS, PATIENCE);
        if (count == 0 || (count < 0 && errno != EINTR)) {
            failed = total - greeted - reset - empty - cut_short;
            break;
        }
        for (int i = 0; i < count; i++)
            listen_to(events[i].data.ptr);
    }
    stop = now();
    qsort(times, greeted, sizeof *times, by_size);
    printf("{\"greeted\": %ld, \"reset\": %ld, \"empty\": %ld, \"short\": %ld, \"failed\": %ld, "
           "\"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           greeted, reset, empty, cut_short, failed, (stop - start) / 1e6, percentile(0.5), percentile(0.99));
    return 0;
}
