/* The least that greeting can cost: epoll, accept4, send, close.
 *
 * Invariants:
 * - It does nothing that a greeting does not need, so all that another server costs more is its own.
 * - It is not an example to follow: its close resets a client that sends first.
 *
 * usage: floor PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const char greeting[] = "Thank you for connecting";

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

int main(int argc, char **argv)
{
    int sock = listen_on(argc > 1 ? atoi(argv[1]) : 0);
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};

    if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, sock, &event) < 0)
        die("epoll");
    for (;;) {
        if (epoll_wait(poll, &event, 1, -1) < 0 && errno != EINTR)
            die("epoll_wait");
        for (;;) {
            int client = accept4(sock, NULL, NULL, SOCK_NONBLOCK);
            if (client < 0)
                break;
            /* MSG_MORE holds the bytes back for the end of stream, so that both leave in one segment. */
            send(client, greeting, sizeof greeting - 1, MSG_MORE | MSG_NOSIGNAL);
            close(client);
        }
    }
}
