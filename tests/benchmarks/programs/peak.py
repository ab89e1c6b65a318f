"""greeter's command line, and the most memory it ever had resident, in bytes, as the last line of all.

Invariants:
- The process itself reads the figure. The one that a parent gets (wait4(2)) includes the parent's own copy
  before exec.

usage: python -m tests.benchmarks.programs.peak ARGUMENTS OF GREETER
"""

from __future__ import annotations

import re
from pathlib import Path

from greeter.__main__ import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        # 98 says that the machine was too busy to be in time, which is no matter here.
        if end.code not in (0, 98):
            raise
    finally:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            print(int(found[1]) * 1024)
