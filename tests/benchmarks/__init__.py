"""What greeter costs, beside what else the machine has: ``python -m tests.benchmarks``.

The law: only what ran in the same minutes is compared. A machine drifts by a factor of two within
seconds, so every server stays up, each round visits all of them, and a ratio is taken within a round.
What is printed is the median over the rounds, and the least and the greatest.

::

    __main__             options, the order of things, the exit
    groups/              one module for each group of rows, and their registry
    bench                what a group is given: rounds, servers that are up, the load
    servers, nginx       whom we compare ourselves with
    load                 the closed-loop clients
    process              a process that we started: where it runs, what it used, its end
    machine              date, hardware, versions, and how busy others kept the machine
    report               tables for people, JSON for programs
    figures              the arithmetic, and what is claimed
    programs/            what runs in processes of its own, two of them in C

Nothing here is a test: the suite checks the arithmetic and that it runs, and asserts no time.
"""
