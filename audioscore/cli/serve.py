"""`audioscore serve`: the scorer as an HTTP service with a web page."""

import os
from pathlib import Path
from typing import Annotated

import typer

from audioscore.cli.options import DeviceOption, FastOption
from audioscore.errors import UsageError

TOKEN_VARIABLE = "AUDIOSCORE_TOKEN"


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="Scorer folder, or models:/NAME@ALIAS, whose changes are followed. Default: the champion."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 uses a free one and prints it.")] = 8000,
    device: DeviceOption = "auto",
    fast: FastOption = False,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the bearer token that /score requires. Default: ${TOKEN_VARIABLE}.")
    ] = None,
    max_megabytes: Annotated[
        float, typer.Option(min=0.001, help="Size limit of one request with all its recordings.")
    ] = 100,
    max_minutes: Annotated[float, typer.Option(min=0.05, max=60, help="Length limit of one recording.")] = 15,
    queue: Annotated[int, typer.Option(min=1, help="Concurrent requests; further ones get status 429.")] = 32,
    watch: Annotated[float, typer.Option(min=0, help="Seconds between checks for a moved alias; 0: never.")] = 30,
) -> None:
    """Serve scores over HTTP, with a web page for recording. SIGTERM or SIGINT stops the service."""
    from audioscore.encoders.compute import set_passive_waiting

    set_passive_waiting()
    from audioscore.serving.metrics import ServiceSettings
    from audioscore.serving.server import serve as run

    settings = ServiceSettings(
        max_bytes=int(max_megabytes * 2**20),
        max_seconds=max_minutes * 60,
        queue=queue,
        watch_seconds=watch,
        token=_read_token(token_file),
    )
    run(
        model, settings, host=host, port=port, device=device, fast=fast,
        listening=lambda address: typer.echo(f"listening at {address}; loading the model", err=True),
    )  # fmt: skip


def _read_token(file: Path | None) -> str | None:
    """Return the required token, if one is set. Raises UsageError if it is empty or not valid in a header."""
    if file is None and TOKEN_VARIABLE not in os.environ:
        return None
    source = TOKEN_VARIABLE if file is None else str(file)
    token = (os.environ[TOKEN_VARIABLE] if file is None else file.read_text(encoding="utf-8-sig")).strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{source}: no valid token. Use printable ASCII characters without spaces.")
    return token
