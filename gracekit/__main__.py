"""`python -m gracekit` and the program `gracekit`: the command line."""

from gracekit.interrupts import end_quietly


def main() -> None:
    """Run the command line; a Ctrl-C while it is loaded ends it without a traceback."""
    end_quietly()
    from gracekit.cli import main as command_line  # takes a second

    command_line(prog_name="gracekit")


if __name__ == "__main__":
    main()
