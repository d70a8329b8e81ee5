"""`python -m gracekit` and the program `gracekit`: the command line."""

import sys

from gracekit.interrupts import end_quietly
from gracekit.memory import RanOutExit, end_at_once, shortage
from gracekit.streams import lost_output, open_closed


def main() -> None:
    """Run the command line; a Ctrl-C while it is loaded ends it without a traceback."""
    end_quietly()
    open_closed()
    try:
        from gracekit.cli import main as command_line  # takes a second

        command_line(prog_name="gracekit")
    except RanOutExit:
        end_at_once()
    except Exception as error:  # of --help, or of what is loaded; commands see to their own
        if isinstance(error, OSError) and (lost := lost_output(error)) is not None:
            sys.exit(f"gracekit: {lost}")
        if (what := shortage(error)) is None:
            raise
        sys.stderr.write(f"gracekit: {what}\n")
        end_at_once()


if __name__ == "__main__":
    main()
