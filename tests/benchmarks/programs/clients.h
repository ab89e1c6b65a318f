/* What load.c, load_tls.c and hold.c share: the closed loop, the class that each client ends in, and the output.
 *
 * Invariants:
 * - A client is greeted if it received exactly the expected bytes and an orderly end of stream.
 * - Each client ends in exactly one class: greeted, reset, empty (an end without a byte), short (an end
 *   before the last byte), wrong (other bytes, or more of them), failed (no connection, any other error, or
 *   unfinished when nothing had happened for PATIENCE).
 * - The time to the greeting runs from just before connect() to the first byte of the greeting.
 *
 * The program that includes this file defines WATCHED (the events to register a client for) before, and
 * start_client, on_event and release_client after it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef PATIENCE
#define PATIENCE 5000 /* milliseconds */
#endif
#define EVENTS 256

struct client {
    int sock;
    int differs;     /* the bytes received are not the expected ones */
    size_t received; /* bytes */
    double began, first_byte;
    void *tls; /* of load_tls.c */
};

struct bytes {
    size_t size;
    unsigned char *data;
};

static struct sockaddr_in server;
static struct bytes expected;
static int poll_fd;
static long total;
static long started, greeted, reset, empty, cut_short, wrong, failed;
static double *times;

/* Connect, and send what comes first; false if that failed, with errno set and c->sock open. */
static int start_client(struct client *c);
/* Read what has arrived; calls end_client at the end of the stream. */
static void on_event(struct client *c);
/* Free what the client has besides its socket. */
static void release_client(struct client *c);
/* All that may be open at a time have begun; does nothing unless the program says so. */
#ifndef ALL_BEGUN
#define ALL_BEGUN() ((void)0)
#endif

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

/* The bytes that the hexadecimal digits of `text` stand for, up to a comma or its end. */
static struct bytes from_hex(const char *text)
{
    struct bytes found = {.data = malloc(strlen(text) / 2 + 1)};
    unsigned int byte;

    if (found.data == NULL)
        die("malloc");
    for (; *text != '\0' && *text != ','; text += 2) {
        if (!isxdigit(text[0]) || !isxdigit(text[1]) || sscanf(text, "%2x", &byte) != 1) {
            fprintf(stderr, "not hexadecimal: %s\n", text);
            exit(2);
        }
        found.data[found.size++] = byte;
    }
    return found;
}

/* The class of a client that an error has ended. */
static long *class_of_error(int error)
{
    return error == ECONNRESET || error == EPIPE ? &reset : &failed;
}

/* The class of a client that an end of stream has ended. */
static long *class_of_end(const struct client *c)
{
    if (c->differs)
        return &wrong;
    if (c->received == expected.size)
        return &greeted;
    return c->received == 0 ? &empty : &cut_short;
}

/* connect() to the server; false if it failed. A non-blocking connect may still be in progress. */
static int connect_to_server(int sock)
{
    if (connect(sock, (struct sockaddr *)&server, sizeof server) == 0 || errno == EINPROGRESS)
        return 1;
    if (errno == EADDRNOTAVAIL)
        die("connect"); /* out of ports: a fault of this machine, not of the server */
    return 0;
}

/* Begin the next client in this place, unless all have begun. */
static void begin_client(struct client *c)
{
    while (started < total) {
        started++;
        *c = (struct client){.began = now()};
        if (start_client(c)) {
            struct epoll_event event = {.events = WATCHED, .data.ptr = c};
            if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->sock, &event) < 0)
                die("epoll_ctl");
            return;
        }
        ++*class_of_error(errno);
        release_client(c);
        close(c->sock);
    }
}

static void end_client(struct client *c, long *class)
{
    if (class == &greeted)
        times[greeted] = c->first_byte - c->began;
    ++*class;
    release_client(c);
    close(c->sock);
    begin_client(c);
}

/* Note `size` bytes of the greeting. */
static void received(struct client *c, const char *data, size_t size)
{
    if (c->received == 0)
        c->first_byte = now();
    if (c->received + size > expected.size || memcmp(expected.data + c->received, data, size) != 0)
        c->differs = 1;
    else
        c->received += size;
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

/* Make `count` clients of 127.0.0.1:`port`, `at_once` of them at a time, and print how they ended. */
static void make_clients(int port, long at_once, long count)
{
    struct client *clients = calloc(at_once, sizeof *clients);
    double start, stop;

    total = count;
    times = malloc((total + 1) * sizeof *times);
    poll_fd = epoll_create1(0);
    if (poll_fd < 0 || clients == NULL || times == NULL)
        die("start");
    server.sin_family = AF_INET;
    server.sin_port = htons(port);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

    start = now();
    for (long i = 0; i < at_once; i++)
        begin_client(&clients[i]);
    ALL_BEGUN();
    while (greeted + reset + empty + cut_short + wrong + failed < total) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poll_fd, events, EVENTS, PATIENCE);
        if (ready == 0 || (ready < 0 && errno != EINTR)) {
            failed = total - greeted - reset - empty - cut_short - wrong;
            break;
        }
        for (int i = 0; i < ready; i++)
            on_event(events[i].data.ptr);
    }
    stop = now();
    qsort(times, greeted, sizeof *times, by_size);
    printf("{\"greeted\": %ld, \"reset\": %ld, \"empty\": %ld, \"short\": %ld, \"wrong\": %ld, \"failed\": %ld, "
           "\"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           greeted, reset, empty, cut_short, wrong, failed, (stop - start) / 1e6, percentile(0.5),
           percentile(0.99));
}
