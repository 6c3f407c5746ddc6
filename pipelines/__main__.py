"""`python -m pipelines submit …` or `compile …`: interrupted while it is still being loaded, a program ends quietly."""

import importlib
import signal
import sys


def main(arguments: list[str]) -> int:
    """Load the program, for which heavy packages take seconds, and run it; returns its exit code."""
    name, *options = arguments
    own = signal.getsignal(signal.SIGINT)
    if own is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = importlib.import_module(f"pipelines.{name}")
    signal.signal(signal.SIGINT, own)
    return int(program.main(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
