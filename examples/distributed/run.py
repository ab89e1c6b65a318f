"""Run a Locust master with two workers on this machine. All arguments go to the master.

    python examples/distributed/run.py -H 127.0.0.1:9999 --greeter-rate 500 -t 5s --greeter-json run.json

On several machines, run the same there, the workers with --master-host. The exit status is that of greeter
load: 0 passed, 99 a limit was missed, 98 the generators were the limit, 1 a worker was lost, 130 Ctrl-C.
"""

import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LOCUST = (sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")))
MASTER = ("--headless", "--only-summary", "--master", "--master-bind-host", "127.0.0.1")
WORKERS = ("--expect-workers", "2", "--expect-workers-max-wait", "20")  # seconds


def main(options: list[str]) -> int:
    if find_spec("locust") is None:
        print("this example needs locust: pip install '.[locust]' in greeter's source tree", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, lambda *_: None)  # the master handles Ctrl-C: it reports and exits
    probe = socket.socket()  # open to the end: until the master listens there, nobody else gets the port
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = str(probe.getsockname()[1])
    workers = [subprocess.Popen((*LOCUST, "--worker", "--master-port", port)) for _ in range(2)]
    try:
        return subprocess.call((*LOCUST, *MASTER, "--master-bind-port", port, *WORKERS, *options))
    finally:
        for worker in workers:
            worker.terminate()  # it has exited, unless the master failed
            worker.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
