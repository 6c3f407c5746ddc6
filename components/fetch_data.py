"""Step 1: bring the data folder into the run."""

from kfp import dsl

from components.base import component


@component()
def fetch_data(
    data_uri: str,
    data: dsl.Output[dsl.Dataset],
    data_digest: dsl.OutputPath(str),  # type: ignore[valid-type]  # KFP's form of an output parameter
    data_revision: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Fetch a folder, an S3 prefix or a DVC-versioned git revision, and say which version of the data it is."""
    from pathlib import Path

    from audioscore.data.versions.revision import folder_digest
    from audioscore.data.versions.storage import fetch

    fetched = fetch(data_uri, Path(data.path))
    Path(data_digest).write_text(folder_digest(Path(data.path)), encoding="utf-8")
    Path(data_revision).write_text(fetched.revision or "", encoding="utf-8")
