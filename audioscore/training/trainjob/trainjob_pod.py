"""What each pod of a TrainJob runs: `python -m audioscore.training.trainjob.trainjob_pod --exchange URI --job NAME`.

It fetches the training that `trainjob` packed, is torchrun in the place that the cluster's PET_* variables give it, and
the first machine writes the model back, whole, or not at all.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from audioscore.errors import AudioscoreError, describe_os_error
from audioscore.training.launch import torchrun
from audioscore.training.trainjob.exchange import Exchange
from audioscore.training.trainjob.pod import MODEL, unpack

LONGEST_WAIT = 12 * 3600  # seconds for the machines to find each other: some fetch longer than others
PLACE = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch, train, write back. The trainer's exit code; 2 and one sentence where this machine cannot take part."""
    parser = argparse.ArgumentParser(prog="python -m audioscore.training.trainjob.trainjob_pod", allow_abbrev=False)
    parser.add_argument("--exchange", required=True, help="what the step and all pods see: s3://BUCKET/PREFIX, or PATH")
    parser.add_argument("--job", required=True, help="name of the TrainJob")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if missing := [name for name in PLACE if name not in os.environ]:
        parser.error(f"{', '.join(missing)} are not set. A TrainJob whose runtime has an mlPolicy of torch sets them.")
    try:
        with tempfile.TemporaryDirectory(prefix="audioscore-") as scratch:
            exchange = Exchange(options.exchange)
            trainer, processes, out = unpack(exchange, options.job, Path(scratch))
            code = torchrun(trainer, processes, ["--rdzv-conf", f"timeout={LONGEST_WAIT}"])
            if code == 0 and int(os.environ["PET_NODE_RANK"]) == 0:
                exchange.put_folder(out, f"{options.job}/{MODEL}")
    except (AudioscoreError, OSError) as fault:
        told = str(fault) if isinstance(fault, AudioscoreError) else describe_os_error(fault)
        sys.stderr.write(f"error: {told}\n")
        return fault.exit_code if isinstance(fault, AudioscoreError) else AudioscoreError.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
