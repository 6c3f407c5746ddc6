"""The trainer as a program, by itself or under torchrun: `torchrun --nproc_per_node=4 -m audioscore.training …`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from audioscore.config import SMALL, Config, load_config
from audioscore.data.versions.revision import code_revision, folder_digest
from audioscore.errors import AudioscoreError, UsageError, describe_os_error
from audioscore.home import home_of_model
from audioscore.scoring.scorer import plan_named

REPOSITORY = Path(__file__).resolve().parents[2]


class _Lines(logging.StreamHandler[TextIO]):
    """Lines on standard error. Not logging's own class: modelscope silences that one where processes are many."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; exit code 0, or 2 and one sentence, said by one process, where the input is wrong or training failed."""
    many = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    many.add_argument("--processes", type=int)
    own, rest = many.parse_known_args(arguments)
    options = parse(rest)
    if own.processes is not None:
        from audioscore.training.launch import torchrun

        return torchrun(rest, own.processes)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Lines(sys.stderr)])
    from audioscore.training.distributed import first_to_fail, is_main, together

    logging.getLogger("audioscore").setLevel(logging.INFO if is_main() else logging.ERROR)

    with together():
        try:
            train(options)
        except Exception as fault:
            if not first_to_fail():
                return AudioscoreError.exit_code
            if isinstance(fault, AudioscoreError | OSError):
                return _say(fault)
            raise
    return 0


def _say(fault: AudioscoreError | OSError) -> int:
    """One sentence on standard error; the exit code."""
    told = str(fault) if isinstance(fault, AudioscoreError) else describe_os_error(fault)
    sys.stderr.write(f"error: {told}\n")
    return fault.exit_code if isinstance(fault, AudioscoreError) else AudioscoreError.exit_code


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What `train` is to do. Exits with 2 where that cannot be understood."""
    parser = argparse.ArgumentParser(
        prog="python -m audioscore.training",
        description="Train plans on a sorted data folder, or on the index and features of a pipeline's steps.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, default=SMALL, help="YAML configuration")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="override a setting: a.b=value")
    parser.add_argument("--plan", action="append", help="baseline, hybrid or a control; all configured ones by default")
    parser.add_argument("--data", type=Path, help="a data folder that `audioscore data sort` has sorted")
    parser.add_argument("--store", help="feature store: a folder, or s3://BUCKET/PREFIX; the home's by default")
    parser.add_argument("--index", type=Path, help="index folder of the sort step, in place of --data")
    parser.add_argument("--features", type=Path, help="folder of the extraction step, beside --index")
    parser.add_argument("--out", type=Path, required=True, help="a folder for each plan is written below it")
    parser.add_argument("--single", action="store_true", help="one plan, written into --out itself")
    parser.add_argument("--init", help="scratch, or warm:FOLDER of a scorer or of the predecessor's model")
    parser.add_argument("--resume", action="store_true", help="keep finished seeds; go on from the checkpoint")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--mlflow",
        metavar="EXPERIMENT",
        help="log curves there: MLFLOW_TRACKING_URI, or the home's database",
    )
    parser.add_argument("--processes", type=int, help="be torchrun: start so many processes here")
    parser.add_argument("--data-digest", help="with --index: which version of the data it is")
    parser.add_argument("--code-revision", help="of the code that trains; this repository's by default")
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> None:
    """Extract what is missing, and train every plan that is asked for. Raises AudioscoreError for what is wrong."""
    overrides = list(options.overrides)
    if options.init is not None:
        overrides.append(f"training.init={options.init}")
    config = load_config(options.config, overrides)
    if config.training.launcher == "trainjob":
        raise UsageError(
            "launcher trainjob is for the pipeline's training step. "
            "Here pass --set training.launcher=torchrun, or inproc."
        )
    plans = [plan_named(plan) for plan in dict.fromkeys(options.plan or config.training.plans)]
    if options.single and len(plans) != 1:
        raise UsageError(f"--single writes one plan; got {len(plans)}. Name it with --plan.")
    index, features, digest = _features(options, config)
    from audioscore.training.callbacks import listeners
    from audioscore.training.train import train_plan

    with listeners(options.mlflow, home_of_model(config.registry.model)) as listen:
        for plan in plans:
            train_plan(
                plan, index, features, options.out if options.single else options.out / plan, config.training,
                data_digest=digest, code_revision=options.code_revision or code_revision(REPOSITORY),
                device=options.device, resume=options.resume, listen=listen,
            )  # fmt: skip


def _features(options: argparse.Namespace, config: Config) -> tuple[Path, Path, str]:
    """Index folder, features folder and the data's digest: a pipeline's, or extracted from a data folder now."""
    if options.data is None:
        if options.index is None or options.features is None:
            raise UsageError("no data: pass --data FOLDER, or --index and --features of a pipeline's steps.")
        return options.index, options.features, options.data_digest or "unknown"
    if options.index is not None or options.features is not None:
        raise UsageError("--data and --index name two things to train on. Give one of them.")
    if not (options.data / "index" / "train.json").is_file():
        raise UsageError(f"{options.data}: has no index/train.json. Run `audioscore data sort {options.data}` first.")
    from audioscore.encoders.extract import extract_folder
    from audioscore.training.distributed import in_turns

    features = options.out / "features"
    store = options.store or home_of_model(config.registry.model).features

    def extract(share: tuple[int, int]) -> None:
        extract_folder(
            options.data, options.data, features, store, config.encoders, config.training,
            device=options.device, share=share,
        )  # fmt: skip

    in_turns(extract, options.device)
    return options.data, features, folder_digest(options.data)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # whoever started it says what can be done; each of many processes would say where it was
        sys.exit(130)
