"""What greeter costs, beside what else the machine has: ``python -m tests.benchmarks``.

Invariants:
- Only what ran in the same minutes is compared. A machine drifts by a factor of two within seconds, so every
  server stays up, each round visits all of them, and a ratio is taken within a round. The tables show the
  median over the rounds, and the least and the greatest.
- Nothing here is a test. The suite checks the arithmetic and that every group runs, and asserts no time.

::

    __main__             options, the order of things, the exit
    groups/              one module for each group of rows, and their registry
    costs                server CPU time per greeting, which several groups measure
    bench                what a group is given: rounds, servers that are up, the load
    servers              the servers that are compared
    nginx, haproxy       those of them that need a configuration
    certificate          the certificate of those that serve TLS
    load                 the closed-loop clients
    process              a process that was started: where it runs, what it used, its end
    machine              date, hardware, versions, and how busy other programs kept the machine
    report               tables for people, JSON for programs
    figures              the arithmetic, and what is claimed
    programs/            what runs in processes of its own, some of it in C
"""
