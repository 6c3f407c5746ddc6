"""`audioscore convert`: a model of the predecessor becomes a scorer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audioscore.cli.data_options import JsonOption
from audioscore.cli.find_model import PREDECESSOR_MUQ

if TYPE_CHECKING:
    from audioscore.scoring.scorer import Description


def convert(
    old: Annotated[Path, typer.Argument(help="The predecessor's folder: type.txt, weights.pt, muq_lora.pt.")],
    new: Annotated[Path, typer.Argument(help="The scorer folder to write; must not exist, or be empty.")],
    muq: Annotated[str, typer.Option(help="Hub id or folder of the MuQ it was trained with.")] = PREDECESSOR_MUQ,
    lora_r: Annotated[
        int, typer.Option(help="Rank of its adapters; matters where muq_lora.pt holds all of MuQ.")
    ] = 128,
    lora_alpha: Annotated[float, typer.Option(help="Adapters count by lora-alpha / lora-r; as --lora-r.")] = 48.0,
    use_grl: Annotated[
        bool | None,
        typer.Option(
            "--use-grl/--no-use-grl", help="Whether it was trained with the adversary. Default: read off the folder."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Sorted data folder whose scored clips give the scale.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a scorer folder of a model of the predecessor: the same ranking, read back and compared."""
    from audioscore.cli.progress import stages
    from audioscore.data.versions.revision import code_revision
    from audioscore.scoring.legacy.convert import convert as convert_folder
    from audioscore.scoring.legacy.convert import is_calibrated
    from audioscore.tracking.judging_data import require_sorted

    if data is not None:
        require_sorted(data)
    with stages() as stage:
        description = convert_folder(
            old, new, muq,
            use_grl=use_grl, rank=lora_r, alpha=lora_alpha, data=data,
            code_revision=code_revision(Path(__file__).resolve().parents[2]),
            progress=None if data is None else stage("calibrating"),
        )  # fmt: skip
    if description.training["adversary"]:
        typer.echo("note: the adversary's discriminator is left out; no score depends on it", err=True)
    if not is_calibrated(description):
        typer.echo(
            "note: scores are not calibrated: they are 25 x generate_tag, with the whole scale as their interval; "
            "convert again with --data FOLDER, a sorted data folder, to put them on its scale",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps(_row(new, description), ensure_ascii=False, indent=2))
    else:
        _tell(new, description)


def _row(folder: Path, description: "Description") -> dict[str, object]:
    return {
        "scorer": str(folder),
        "muq": description.encoders["muq"].to_json(),
        "licence": description.licence,
        "tuning": None if description.tuning is None else asdict(description.tuning),
        "calibration_clips": len(description.seen_clips),
        "half_width": description.calibration.half_width,
        "calibrated": bool(description.seen_clips),
    }


def _tell(folder: Path, description: "Description") -> None:
    muq, tuning = description.encoders["muq"], description.tuning
    typer.echo(f"scorer       {folder}")
    typer.echo(f"MuQ          {muq.id or 'embedded'}{f' at {muq.revision}' if muq.revision else ''}, layer {muq.layer}")
    typer.echo(f"  sha256     {muq.sha256}")
    typer.echo(f"  licence    {description.licence}")
    if tuning is not None:
        typer.echo(f"adapters     rank {tuning.rank}, alpha {tuning.alpha}, layers 0 to {(muq.layer or 1) - 1}")
    calibration = description.calibration
    clips = (
        f"{len(description.seen_clips)} clips; {calibration.coverage:.0%} within {calibration.half_width:.1f} points"
    )
    typer.echo(f"calibration  {clips if description.seen_clips else 'none'}")
