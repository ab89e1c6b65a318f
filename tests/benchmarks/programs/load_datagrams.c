/* Closed-loop clients over UDP: send one datagram, wait for the answer, begin the next with another socket.
 *
 * The classes are those of clients.h: a client is greeted if the first answer is the greeting, and an answer that
 * is lost is one that failed. Nothing is sent twice.
 *
 * usage: load_datagrams PORT AT_ONCE TOTAL SEND EXPECT
 *   SEND    the datagram of a client, in hexadecimal
 *   EXPECT  the greeting, in hexadecimal
 * Prints one JSON object; times are in microseconds.
 */
#define WATCHED EPOLLIN
#include "clients.h"

static struct bytes payload;

static int start_client(struct client *c)
{
    c->sock = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (c->sock < 0)
        die("socket");
    return connect_to_server(c->sock) && send(c->sock, payload.data, payload.size, 0) == (ssize_t)payload.size;
}

static void on_event(struct client *c)
{
    char buffer[65536];
    ssize_t size = recv(c->sock, buffer, sizeof buffer, 0);

    if (size >= 0) {
        received(c, buffer, size);
        end_client(c, class_of_end(c));
    } else if (errno != EAGAIN) {
        end_client(c, class_of_error(errno));
    }
}

static void release_client(struct client *c)
{
    (void)c;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: load_datagrams PORT AT_ONCE TOTAL SEND EXPECT\n");
        return 2;
    }
    payload = from_hex(argv[4]);
    expected = from_hex(argv[5]);
    make_clients(atoi(argv[1]), atol(argv[2]), atol(argv[3]));
    return 0;
}
