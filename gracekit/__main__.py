"""`python -m gracekit` is the `gracekit` command."""

from gracekit.cli import main

if __name__ == "__main__":
    main(prog_name="gracekit")
