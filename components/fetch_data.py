"""Step 1: fetch the data folder."""

from kfp import dsl

from components.base import component


@component()
def fetch_data(
    data_uri: str,
    data: dsl.Output[dsl.Dataset],
    data_digest: dsl.OutputPath(str),  # type: ignore[valid-type]  # KFP declares output parameters so
    data_revision: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Fetch a folder, an S3 prefix or a DVC-versioned git revision; output its digest and revision."""
    from pathlib import Path

    from audioscore.data.versions.revision import folder_digest
    from audioscore.data.versions.storage import fetch

    fetched = fetch(data_uri, Path(data.path))
    Path(data_digest).write_text(folder_digest(Path(data.path)), encoding="utf-8")
    Path(data_revision).write_text(fetched.revision or "", encoding="utf-8")
