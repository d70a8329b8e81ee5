"""`python -m gracekit` and the program `gracekit`: the command line."""

import sys

from gracekit.interrupts import end_quietly
from gracekit.streams import lost_output, open_closed


def main() -> None:
    """Run the command line; a Ctrl-C while it is loaded ends it without a traceback."""
    end_quietly()
    open_closed()
    from gracekit.cli import main as command_line  # takes a second

    try:
        command_line(prog_name="gracekit")
    except OSError as error:  # of --help; commands see to their own
        if (lost := lost_output(error)) is None:
            raise
        sys.exit(f"gracekit: {lost}")


if __name__ == "__main__":
    main()
