"""`python -m pipelines submit JSON` and `python -m pipelines compile JSON`: the programs behind the command line.

Loading KFP takes seconds. An interrupt during that time ends the process without a traceback.
"""

import importlib
import signal
import sys


def main(arguments: list[str]) -> int:
    """Load a program and run it with the request in its JSON document; returns its exit code."""
    original = signal.getsignal(signal.SIGINT)
    if original is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    importlib.import_module("audioscore.terminal").prepare_output()
    requests = importlib.import_module("pipelines.request")
    try:
        name, request = requests.read_request(arguments)
    except requests.UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.exit_code)
    program = importlib.import_module(f"pipelines.{name}")
    signal.signal(signal.SIGINT, original)
    return int(program.main(request))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
