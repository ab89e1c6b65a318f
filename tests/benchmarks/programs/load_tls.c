/* Closed-loop clients over TLS 1.3: a full handshake, the greeting, close_notify, close, begin the next.
 *
 * Invariants, besides those of clients.h:
 * - Every handshake is a full one: no session is kept, so none is resumed.
 * - The server's certificate is verified, against CERTIFICATE alone.
 * - An orderly end is close_notify. An end of stream without it is an end before the last byte ("short"),
 *   even behind the whole greeting, because an attacker can cut a TCP stream off (RFC 8446, 6.1).
 * - No socket ever blocks.
 *
 * usage: load_tls PORT AT_ONCE TOTAL CERTIFICATE EXPECT
 *   CERTIFICATE  a PEM file with what to trust
 *   EXPECT       the greeting, in hexadecimal
 * Prints one JSON object; times are in microseconds.
 */
/* Edge-triggered for both directions, registered once: every event makes SSL_read go on where it was. */
#define WATCHED (EPOLLIN | EPOLLOUT | EPOLLET)
#include "clients.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>

static SSL_CTX *context;

static void die_of_tls(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, ERR_reason_error_string(ERR_peek_last_error()));
    exit(1);
}

static int start_client(struct client *c)
{
    SSL *tls = c->tls = SSL_new(context);

    c->sock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->sock < 0)
        die("socket");
    if (tls == NULL || SSL_set_fd(tls, c->sock) != 1)
        die_of_tls("SSL_new");
    SSL_set_connect_state(tls);
    return connect_to_server(c->sock);
}

/* The class of a client whose SSL_read failed. */
static long *class_of_failure(const struct client *c, int failure, int error)
{
    int ended = failure == SSL_ERROR_SYSCALL && error == 0; /* OpenSSL 1.1 */

#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING /* OpenSSL 3 */
    ended |= failure == SSL_ERROR_SSL && ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
#endif
    if (ended)
        return c->differs ? &wrong : c->received == 0 ? &empty : &cut_short;
    return failure == SSL_ERROR_SYSCALL ? class_of_error(error) : &failed;
}

static void on_event(struct client *c)
{
    char buffer[4096];
    for (;;) {
        int size, failure, error;

        ERR_clear_error();
        errno = 0;
        size = SSL_read(c->tls, buffer, sizeof buffer); /* makes the handshake, too */
        error = errno;
        if (size > 0) {
            received(c, buffer, size);
            continue;
        }
        failure = SSL_get_error(c->tls, size);
        if (failure == SSL_ERROR_WANT_READ || failure == SSL_ERROR_WANT_WRITE)
            return;
        if (failure == SSL_ERROR_ZERO_RETURN) {
            if (SSL_session_reused(c->tls)) {
                fprintf(stderr, "a handshake was not a full one\n");
                exit(1);
            }
            SSL_shutdown(c->tls); /* close_notify; the answer is not waited for */
            end_client(c, class_of_end(c));
        } else {
            end_client(c, class_of_failure(c, failure, error));
        }
        return;
    }
}

static void release_client(struct client *c)
{
    SSL_free(c->tls);
    c->tls = NULL;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: load_tls PORT AT_ONCE TOTAL CERTIFICATE EXPECT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1)
        die_of_tls("TLS 1.3");
    if (SSL_CTX_load_verify_locations(context, argv[4], NULL) != 1)
        die_of_tls(argv[4]);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    expected = from_hex(argv[5]);
    make_clients(atoi(argv[1]), atol(argv[2]), atol(argv[3]));
    return 0;
}
