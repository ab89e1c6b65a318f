/* Clients that all connect and then wait for as long as the server holds them: read to the end of stream, close.
 *
 * The classes, and what counts as greeted, are those of clients.h. Besides:
 * - connect() blocks, so that a full accept queue slows the clients down instead of timing them out.
 * - The clients connect from SOURCE: one address has as many connections to a port as it has local ports
 *   (ip_local_port_range, ip(7)). Several processes, each with a source of its own, make more.
 *
 * usage: hold PORT CLIENTS SOURCE EXPECT
 *   SOURCE  the local address, as in 127.0.0.2
 *   EXPECT  the greeting, in hexadecimal
 * Prints "held" when all have connected, and one JSON object when all have ended.
 */
#define WATCHED EPOLLIN
#define PATIENCE 900000
#define ALL_BEGUN() (puts("held"), fflush(stdout))
#include "clients.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

static struct sockaddr_in source = {.sin_family = AF_INET};

static int start_client(struct client *c)
{
    int on = 1;

    c->sock = socket(AF_INET, SOCK_STREAM, 0);
    if (c->sock < 0)
        die("socket");
    /* connect() chooses the port, so that only this destination takes it (ip(7)). */
    setsockopt(c->sock, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->sock, (struct sockaddr *)&source, sizeof source) < 0)
        die("bind");
    return connect_to_server(c->sock);
}

static void on_event(struct client *c)
{
    char buffer[4096];
    ssize_t size;

    while ((size = recv(c->sock, buffer, sizeof buffer, MSG_DONTWAIT)) > 0)
        received(c, buffer, size);
    if (size == 0)
        end_client(c, class_of_end(c));
    else if (errno != EAGAIN)
        end_client(c, class_of_error(errno));
}

static void release_client(struct client *c)
{
    (void)c;
}

int main(int argc, char **argv)
{
    if (argc != 5 || inet_pton(AF_INET, argv[3], &source.sin_addr) != 1) {
        fprintf(stderr, "usage: hold PORT CLIENTS SOURCE EXPECT\n");
        return 2;
    }
    expected = from_hex(argv[4]);
    make_clients(atoi(argv[1]), atol(argv[2]), atol(argv[2]));
    return 0;
}
