"""Entry point of `python -m audioscore.training …`: one process of a training, alone or under torchrun.

Its options are those of `audioscore train`. A process that `launch` starts has a request file instead of options.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TextIO

from audioscore.cli.train import program, run_request
from audioscore.errors import AudioscoreError
from audioscore.training.launch import print_error, read_request, torchrun


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Log to standard error. Not logging's own class: modelscope turns that one off in all processes but the first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, that of the error, 130 after an interrupt, or that of the first failed process."""
    given = sys.argv[1:] if arguments is None else arguments
    request = None if given else read_request()
    if request is not None and request.processes is not None:
        return torchrun(replace(request, processes=None), request.processes)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_StderrHandler(sys.stderr)])
    from audioscore.training.distributed import first_to_fail, is_main, process_group

    logging.getLogger("audioscore").setLevel(logging.INFO if is_main() else logging.ERROR)
    with process_group():
        try:
            if request is None:
                return program(given)
            run_request(request)
        except KeyboardInterrupt:
            return 130  # the process that started this one prints what to do
        except Exception as error:
            if not first_to_fail():
                return AudioscoreError.exit_code
            if not isinstance(error, AudioscoreError | OSError):
                raise
            return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
