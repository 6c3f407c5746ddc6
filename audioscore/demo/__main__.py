"""Write a synthetic corpus: `python -m audioscore.demo --out DIR`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from audioscore.demo.corpus import write_corpus
from audioscore.demo.plan import DEMO_CLIPS, DEMO_SHARE, DEMO_SINGERS, DEMO_SONGS, plan_corpus
from audioscore.errors import AudioscoreError


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan and write the corpus the arguments ask for; the exit code of the command."""
    parser = argparse.ArgumentParser(prog="python -m audioscore.demo", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write labels.csv and audio/ into")
    parser.add_argument("--singers", type=int, default=DEMO_SINGERS)
    parser.add_argument("--clips-per-singer", type=int, default=DEMO_CLIPS)
    parser.add_argument("--songs", type=int, default=DEMO_SONGS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--timbre-share", type=float, default=DEMO_SHARE, help="share of quality that is timbre, 0 to 1"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        plan = plan_corpus(
            given.singers,
            given.clips_per_singer,
            seed=given.seed,
            timbre_share=given.timbre_share,
            songs=given.songs,
        )
        write_corpus(given.out, plan, workers=given.workers)
    except AudioscoreError as fault:
        logging.getLogger(__name__).error("%s", fault)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
