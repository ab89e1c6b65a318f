"""The calls that fail, and the errors that their manual pages have for each.

A name is one of tests/support/faults.c: the call, and the kind of its descriptor behind a point. Left out are
errors of a wrong program, which a call of a right one never has (EBADF, EFAULT, EINVAL, ENOTSOCK), and those
that Linux never has for such a descriptor:

- close(2) of anything but a file: an error is that of a file system which still has to write (filp_close() in
  fs/open.c: sockets, pipes, epoll instances and memfds have nothing to flush).
- ioctl(2) with FIONBIO and fcntl(2) with F_SETFL: a flag is set, whatever it is a descriptor of.
- epoll_ctl(2) with EPOLL_CTL_DEL: it takes no memory.
- Writing to a socket pair with another error than EINTR: asyncio's wakes up its loop, and where it is full,
  the loop is awake already; that of a worker fails when the worker is gone (tests/service/test_channel.py).
- Writing to a log without room or reader: then not one call fails, but all (tests/service/test_logs.py).

What libuv calls for itself is left out where it has no answer but abort() or to forget the connection:
epoll_ctl(2), pipe2(2) and writing to that pipe, and setsockopt(2) with TCP_NODELAY, which the kernel never
refuses to a TCP socket. greeter tries beforehand if there are enough descriptors (greeter/system/loops.py).
"""

from __future__ import annotations

DESCRIPTORS = ("EMFILE", "ENFILE")
# What the network is told of in between: "treat them like EAGAIN by retrying", accept(2).
PENDING = (
    "ENETDOWN",
    "EPROTO",
    "ENOPROTOOPT",
    "EHOSTDOWN",
    "ENONET",
    "EHOSTUNREACH",
    "EOPNOTSUPP",
    "ENETUNREACH",
)

ERRORS: dict[str, tuple[str, ...]] = {
    "accept": ("EAGAIN", "ECONNABORTED", "EINTR", *DESCRIPTORS, "ENOBUFS", "ENOMEM", "EPERM", *PENDING),
    "bind": ("EACCES", "EADDRINUSE", "EADDRNOTAVAIL", "ENOMEM"),
    "chmod": ("EIO", "ENOENT", "ENOMEM", "EPERM", "EROFS"),
    "close.file": ("EDQUOT", "EINTR", "EIO", "ENOSPC"),
    "dup": ("EMFILE",),
    "epoll_add": ("ENOMEM", "ENOSPC"),
    "epoll_add.other": ("ENOMEM", "ENOSPC"),
    "epoll_add.pair": ("ENOMEM", "ENOSPC"),
    "epoll_add.udp": ("ENOMEM", "ENOSPC"),
    "epoll_create": (*DESCRIPTORS, "ENOMEM"),
    "epoll_modify": ("ENOMEM",),
    "epoll_wait": ("EINTR",),
    "eventfd": (*DESCRIPTORS, "ENODEV", "ENOMEM"),
    "exec": ("E2BIG", "EACCES", "EIO", "ENOENT", "ENOMEM", "ETXTBSY"),
    "getpeername": ("ENOBUFS", "ENOTCONN"),
    "getsockname": ("ENOBUFS",),
    "getsockname.udp": ("ENOBUFS",),
    "getsockopt": ("ENOPROTOOPT",),
    "getsockopt.udp": ("ENOPROTOOPT",),
    "listen": ("EADDRINUSE",),
    "memfd_create": (*DESCRIPTORS, "ENOMEM", "EPERM"),
    "mmap.memory": ("EAGAIN", "ENFILE", "ENOMEM", "EPERM"),
    "open": ("EACCES", "EINTR", "EIO", "ELOOP", *DESCRIPTORS, "ENOENT", "ENOMEM"),
    "pidfd_open": (*DESCRIPTORS, "ENODEV", "ENOMEM"),
    "pipe": DESCRIPTORS,
    "poll": ("EINTR", "ENOMEM"),
    "recv": ("EAGAIN", "ECONNRESET", "EINTR", "ENOMEM", "ETIMEDOUT"),
    "recv.file": ("EINTR", "EIO"),
    "recv.memory": ("EINTR",),
    "recv.pair": ("EAGAIN", "EINTR"),
    "recv.pipe": ("EINTR",),
    "recv.udp": ("EAGAIN", "ECONNREFUSED", "EINTR", "ENOMEM", "EHOSTUNREACH", "ENETDOWN"),
    "send": ("EAGAIN", "ECONNRESET", "EINTR", "ENOBUFS", "ENOMEM", "EPIPE", "ETIMEDOUT"),
    "send.memory": ("EINTR", "ENOSPC"),
    "send.notify": ("EAGAIN", "ECONNREFUSED", "EINTR", "ENOBUFS", "ENOENT", "ENOMEM"),
    "send.pair": ("EINTR",),
    "send.pipe": ("EAGAIN", "EINTR"),
    "send.udp": (
        "EACCES",
        "EAGAIN",
        "ECONNREFUSED",
        "EHOSTUNREACH",
        "EINTR",
        "ENETUNREACH",
        "ENOBUFS",
        "ENOMEM",
        "EPERM",
    ),
    "setsockopt": ("ENOBUFS", "ENOMEM", "ENOPROTOOPT", "EPERM"),
    "setsockopt.udp": ("ENOBUFS", "ENOMEM", "ENOPROTOOPT", "EPERM"),
    "shutdown": ("ENOBUFS", "ENOTCONN"),
    "socket": ("EACCES", "EAFNOSUPPORT", *DESCRIPTORS, "ENOBUFS", "ENOMEM"),
    "socketpair": DESCRIPTORS,
    "spawn": ("EAGAIN", "ENOMEM"),
    "thread": ("EAGAIN",),
    "unlink": ("EACCES", "EIO", "ENOENT", "EROFS"),
    "wait": ("EINTR",),
}

# Calls that a service makes and that have no error but those left out above.
NO_ERRORS = frozenset(
    ("close", "close.memory", "close.notify", "close.other", "close.pair", "close.pipe", "close.udp")
    + ("nonblock", "nonblock.notify", "nonblock.other", "nonblock.pair", "nonblock.udp")
    + ("getsockname.notify", "getsockname.pair", "getsockopt.pair", "mmap.file", "mmap.other")
    + ("recv.other", "send.other")
)

# A call after which the client whose connection it was about may be lost. No other client may.
COSTS_ITS_CLIENT = frozenset(
    (
        "close",
        "epoll_add",
        "epoll_modify",
        "getpeername",
        "getsockname",
        "recv",
        "send",
        "setsockopt",
        "shutdown",
    )
)
# libuv accepts for the streams path of uvloop. Without a descriptor it gives up a spare one, accepts all that
# is queued and closes it, and nothing hears of it, as greeter/server/streams.py documents. Measured over the
# rows of these errors: 1 to 3 of 3 clients lost, none counted; after ENOBUFS and ENOMEM 0, it tries again.
LOST_BY_LIBUV = DESCRIPTORS
# Errors after which the call is repeated, so that no client is lost.
COSTS_NONE = frozenset(("EAGAIN", "EINTR"))
