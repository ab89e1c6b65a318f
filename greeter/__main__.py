"""Where the command begins: ``greeter`` and ``python -m greeter`` are the same."""

from greeter import interrupt


def main() -> None:
    """The console script."""
    interrupt.leave_at_once()  # before anything else is loaded, which takes a while
    from greeter import cli

    cli.main()


if __name__ == "__main__":
    main()
