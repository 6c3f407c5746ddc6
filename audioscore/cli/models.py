"""`audioscore models`, `promote`, `rollback` and `convert`: registered models and their history."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audioscore.cli.evaluate import gate_settings
from audioscore.cli.options import JsonOption, stages
from audioscore.tracking.find_scorer import LEGACY_MUQ, registered_name

if TYPE_CHECKING:
    from audioscore.scoring.scorer import Description

REFUSED = 1  # exit code: the promotion gate refused

ModelNameOption = Annotated[
    str,
    typer.Option("--model", metavar="NAME", help="Name of the registered model.", callback=registered_name),
]


def models(
    history: Annotated[bool, typer.Option("--history", help="List the champions with their periods instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List registered versions with their test results, newest first."""
    rows = [row for tracking_uri in _registries() for row in (_periods if history else _versions)(tracking_uri)]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif not rows:
        missing = "no version was ever champion" if history else "no model is registered"
        typer.echo(f"{missing}; `audioscore demo` registers a first model", err=True)
    elif history:
        _print_history(rows)
    else:
        _print_versions(rows)


def _registries() -> list[str]:
    """URIs of the existing registries; a missing or empty database is not changed."""
    from audioscore.home import DEMO_MODEL, home_of_model
    from audioscore.tracking.connection import database_exists

    uris = dict.fromkeys(home_of_model(name).tracking_uri for name in ("", DEMO_MODEL))
    return [uri for uri in uris if database_exists(uri)]


def _versions(tracking_uri: str) -> list[dict[str, Any]]:
    from audioscore.tracking.registry import list_versions

    return [
        {"name": found.name, "version": found.version, "aliases": sorted(found.aliases), **found.tags}
        for found in list_versions(tracking_uri)
    ]


def _periods(tracking_uri: str) -> list[dict[str, Any]]:
    """Champion periods of every model, the latest first."""
    from audioscore.tracking.connection import connect
    from audioscore.tracking.registry import CHAMPION, champion_periods, list_versions, read_changes, version_by_alias

    client = connect(tracking_uri)
    rows = []
    for name in dict.fromkeys(found.name for found in list_versions(tracking_uri)):
        champion = version_by_alias(client, name, CHAMPION)
        found = champion_periods(read_changes(client, name), champion.version if champion else None)
        rows += [{"name": name, **one.to_json()} for one in reversed(found)]
    return rows


def _print_versions(rows: list[dict[str, Any]]) -> None:
    _print_with_sentences(
        ("model", "aliases", "plan", "test Spearman"),
        [
            (f"{row['name']} v{row['version']}", ", ".join(row["aliases"]) or "-", row.get("plan", "-"),
             row.get("test_spearman", "-"))
            for row in rows
        ],
        [row.get("decision", "-") for row in rows],
    )  # fmt: skip


def _print_history(rows: list[dict[str, Any]]) -> None:
    lines, sentences = [], []
    for row in rows:
        done = "" if row["carried_out"] else " (not carried out, or the alias was moved manually)"
        by = row["kind"] + (f" (replaced v{row['beaten']})" if row["beaten"] is not None else "")
        until = _minute(row["until"]) if row["until"] else "now" if row["carried_out"] else "-"
        lines.append((f"{row['name']} v{row['champion']}", _minute(row["since"]), until, by))
        sentences.append((row["why"] or "-") + done)
    _print_with_sentences(("champion", "from (UTC)", "to", "by"), lines, sentences)


def _minute(time: str) -> str:
    """
    >>> _minute("2026-11-29T20:13:40+00:00")
    '2026-11-29 20:13'
    """
    return time[:16].replace("T", " ")


def _print_with_sentences(headings: Sequence[str], lines: Sequence[Sequence[str]], sentences: Sequence[str]) -> None:
    """Print a table with an indented sentence below each line."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    console = Console()
    for line, sentence in zip((headings, *lines), ("", *sentences), strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        console.print(Text(cells, style="" if sentence else "bold"), soft_wrap=True)
        if sentence:
            console.print(Padding(Text(sentence), (0, 0, 0, 4), expand=False))


def promote(
    version: Annotated[
        int, typer.Argument(min=1, max=10**9 - 1, metavar="V", help="Version number, see `audioscore models`.")
    ],
    model: ModelNameOption = "audioscore",
    data: Annotated[
        Path | None, typer.Option(help="Sorted data folder for the comparison. Default: the data of the version's run.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration of the gate. Default: that of the version's run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version champion if it beats the champion. Otherwise exit with 1.

    Both score clips now that neither was trained on.
    """
    from audioscore.encoders.store import FeatureStore
    from audioscore.home import home_of_model
    from audioscore.tracking.compare import RUN_CONFIG, data_of_run, sorted_data
    from audioscore.tracking.connection import connect, require_database
    from audioscore.tracking.promotion import promote_if_better
    from audioscore.tracking.registry import version_of

    home = home_of_model(model)
    given = None if data is None else sorted_data(data)
    require_database(home.tracking_uri)
    tags = version_of(connect(home.tracking_uri), model, version).tags
    run = home.runs / tags.get("run_id", "unknown")
    evaluated_on = given or data_of_run(run, tags.get("data_digest", "unknown"))
    registry, evaluation = gate_settings(config, run / RUN_CONFIG)
    found = promote_if_better(
        home.tracking_uri, model, version, evaluated_on, FeatureStore(home.features), registry, evaluation
    )
    replaced = f", replacing v{found.champion.version}" if found.champion else ", the first"
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
    elif found.decision.promoted:
        typer.echo(f"{model} v{version} is champion{replaced}: {found.decision.reason}.")
    if not found.decision.promoted:
        if not as_json:
            typer.echo(f"{model} v{version} is not promoted: {found.decision.reason}.", err=True)
        raise typer.Exit(REFUSED)


def rollback(
    model: ModelNameOption = "audioscore",
    why: Annotated[str, typer.Option(metavar="TEXT", help="Reason that the history records.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make the previous champion champion again. The current one becomes `previous`."""
    from audioscore.home import home_of_model
    from audioscore.tracking.connection import connect, require_database
    from audioscore.tracking.registry import rollback as roll_back

    tracking_uri = home_of_model(model).tracking_uri
    require_database(tracking_uri)
    champion, before = roll_back(connect(tracking_uri), model, why)
    if as_json:
        typer.echo(json.dumps({"name": model, "champion": champion, "previous": before}, indent=2))
    else:
        typer.echo(f"{model} v{champion} is champion again; v{before} is previous.")


def convert(
    old: Annotated[Path, typer.Argument(help="Legacy model folder: type.txt, weights.pt, muq_lora.pt.")],
    new: Annotated[Path, typer.Argument(help="Scorer folder to write; must be missing or empty.")],
    muq: Annotated[str, typer.Option(help="Hub id or folder of the MuQ that it was trained with.")] = LEGACY_MUQ,
    lora_r: Annotated[
        int, typer.Option(help="Rank of its adapters; used only if muq_lora.pt contains all of MuQ.")
    ] = 128,
    lora_alpha: Annotated[float, typer.Option(help="Alpha of its adapters (scale alpha / rank); see --lora-r.")] = 48.0,
    use_grl: Annotated[
        bool | None,
        typer.Option(
            "--use-grl/--no-use-grl", help="Whether it was trained with the adversary. Default: read from the folder."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Sorted data folder whose scores calibrate the scale.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a legacy model to a scorer folder. The ranking is unchanged, and verified.

    Legacy models are those of QwenFeat-Vocal-Score.
    """
    from audioscore.data.versions.revision import code_revision
    from audioscore.scoring.legacy.convert import convert as convert_folder
    from audioscore.scoring.legacy.convert import is_calibrated
    from audioscore.tracking.compare import require_sorted

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
        typer.echo("note: the discriminator of the adversary is not converted; scores do not depend on it", err=True)
    if not is_calibrated(description):
        typer.echo(
            "note: scores are not calibrated: they are 25 x generate_tag, and each interval is the whole scale. "
            "Convert again with --data FOLDER, a sorted data folder, to calibrate them.",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps(_document(new, description), ensure_ascii=False, indent=2))
    else:
        _print_conversion(new, description)


def _document(folder: Path, description: "Description") -> dict[str, object]:
    return {
        "scorer": str(folder),
        "muq": description.encoders["muq"].to_json(),
        "licence": description.licence,
        "tuning": None if description.tuning is None else asdict(description.tuning),
        "calibration_clips": len(description.seen_clips),
        "half_width": description.calibration.half_width,
        "calibrated": bool(description.seen_clips),
    }


def _print_conversion(folder: Path, description: "Description") -> None:
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
