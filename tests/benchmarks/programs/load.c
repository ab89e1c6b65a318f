/* Closed-loop clients over plain TCP: connect, perhaps send, read to the end of stream, close, begin the next.
 *
 * The classes, and what counts as greeted, are those of clients.h. load.py is the same in Python.
 *
 * usage: load PORT AT_ONCE TOTAL SEND EXPECT
 *   SEND    what a client sends right after it connects, in hexadecimal; several, separated by commas, are
 *           taken in turn; "" for nothing
 *   EXPECT  the greeting, in hexadecimal; HEX*COUNT is that so many times
 * Prints one JSON object; times are in microseconds.
 */
#define WATCHED EPOLLIN
#include "clients.h"

static struct bytes *payloads;
static size_t payload_count;

/* A client that sends first must not give the server time to close first: it waits for the TCP handshake (at
 * most PATIENCE) and sends at once. */
static int start_client(struct client *c)
{
    const struct bytes *payload = payload_count ? &payloads[started % payload_count] : NULL;

    c->sock = socket(AF_INET, SOCK_STREAM | (payload ? 0 : SOCK_NONBLOCK), 0);
    if (c->sock < 0)
        die("socket");
    if (payload) {
        struct timeval patience = {.tv_sec = PATIENCE / 1000};
        setsockopt(c->sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    }
    if (!connect_to_server(c->sock))
        return 0;
    return payload == NULL || send(c->sock, payload->data, payload->size, MSG_NOSIGNAL) == (ssize_t)payload->size;
}

static void on_event(struct client *c)
{
    static char buffer[65536];
    for (;;) {
        ssize_t size = recv(c->sock, buffer, sizeof buffer, MSG_DONTWAIT);
        if (size > 0) {
            received(c, buffer, size);
            continue;
        }
        if (size == 0)
            end_client(c, class_of_end(c));
        else if (errno != EAGAIN)
            end_client(c, class_of_error(errno));
        return;
    }
}

static void release_client(struct client *c)
{
    (void)c;
}

/* The bytes that HEX or HEX*COUNT stands for. */
static struct bytes repeated(char *text)
{
    char *star = strchr(text, '*');
    size_t count = star == NULL ? 1 : strtoul(star + 1, NULL, 10);
    struct bytes piece, found;

    if (star != NULL)
        *star = '\0';
    piece = from_hex(text);
    found = (struct bytes){piece.size * count, malloc(piece.size * count + 1)};
    if (found.data == NULL)
        die("malloc");
    for (size_t i = 0; i < count; i++)
        memcpy(found.data + i * piece.size, piece.data, piece.size);
    free(piece.data);
    return found;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: load PORT AT_ONCE TOTAL SEND EXPECT\n");
        return 2;
    }
    payloads = calloc(strlen(argv[4]) + 1, sizeof *payloads);
    if (payloads == NULL)
        die("calloc");
    for (const char *text = *argv[4] ? argv[4] : NULL; text; text = strchr(text, ',')) {
        text += *text == ',';
        payloads[payload_count++] = from_hex(text);
    }
    expected = repeated(argv[5]);
    make_clients(atoi(argv[1]), atol(argv[2]), atol(argv[3]));
    return 0;
}
