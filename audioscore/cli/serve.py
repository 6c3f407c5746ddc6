"""`audioscore serve`: the scorer as an HTTP service with a web page."""

import os
from pathlib import Path
from typing import Annotated

import typer

TOKEN_VARIABLE = "AUDIOSCORE_TOKEN"


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="A scorer folder, or models:/NAME@ALIAS, which is followed. Default: the champion."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, and says which.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    fast: Annotated[
        bool, typer.Option("--fast", help="Multiply 16-bit integers where the CPU does so quicker; less exact.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the bearer token that /score asks for; else ${TOKEN_VARIABLE}.")
    ] = None,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Of one request, with all its recordings.")] = 100,
    max_minutes: Annotated[float, typer.Option(min=0.05, max=60, help="Of one recording.")] = 15,
    queue: Annotated[int, typer.Option(min=1, help="Requests in the house, beyond which 429 is said.")] = 32,
    watch: Annotated[float, typer.Option(min=0, help="Seconds between looks at a moved alias; 0: never.")] = 30,
) -> None:
    """Serve scores over HTTP, and a page in which to sing, until told to stop."""
    from audioscore.encoders.compute import wait_asleep

    wait_asleep()
    from audioscore.serving.metrics import Settings
    from audioscore.serving.server import serve as run

    settings = Settings(
        max_bytes=int(max_megabytes * 2**20),
        max_seconds=max_minutes * 60,
        queue=queue,
        watch_seconds=watch,
        token=_token(token_file),
    )
    run(
        model, settings, host=host, port=port, device=device, fast=fast,
        listening=lambda address: typer.echo(f"listening at {address}; loading the model", err=True),
    )  # fmt: skip


def _token(file: Path | None) -> str | None:
    """The token that is asked for, or None. Raises UsageError where it is empty or could not be sent in a header."""
    from audioscore.errors import UsageError

    if file is None and TOKEN_VARIABLE not in os.environ:
        return None
    where = TOKEN_VARIABLE if file is None else str(file)
    token = (os.environ[TOKEN_VARIABLE] if file is None else file.read_text(encoding="utf-8-sig")).strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{where}: holds no token. Write one of printable ASCII letters, without spaces.")
    return token
