"""A master with two workers on this machine; what is given goes to the master.

    python examples/distributed/run.py -H 127.0.0.1:9999 --greeter-rate 500 -t 5s --greeter-json run.json

On several machines, start the same commands there, the workers with --master-host. The exit code is that of
greeter load: 0, or 99 for a limit that was missed, 98 if the generators were the limit, 1 for a lost worker,
130 after Ctrl-C, which still gives the report.
"""

import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LOCUST = (sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")))
MASTER = ("--headless", "--only-summary", "--master", "--master-bind-host", "127.0.0.1")
PATIENT = ("--expect-workers", "2", "--expect-workers-max-wait", "20")  # seconds


def main(options: list[str]) -> int:
    if find_spec("locust") is None:
        print("needs a package: pip install '.[locust]' in greeter's source tree", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the master, which reports and leaves
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    workers = [subprocess.Popen((*LOCUST, "--worker", "--master-port", port)) for _ in range(2)]
    try:
        return subprocess.call((*LOCUST, *MASTER, "--master-bind-port", port, *PATIENT, *options))
    finally:
        for worker in workers:
            worker.terminate()  # it has left already, unless its master has failed
            worker.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
