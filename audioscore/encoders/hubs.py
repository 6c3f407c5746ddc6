"""The addresses of Hugging Face and ModelScope."""

from audioscore.data.transfer.network import await_server
from audioscore.encoders.features import Kind


def hub_address(kind: Kind) -> tuple[str, str]:
    """Return the address of an encoder's hub, and the variable that changes it."""
    if kind == "muq":
        from huggingface_hub import constants

        return constants.ENDPOINT, "HF_ENDPOINT"
    from modelscope_hub.config import HubConfig

    return str(HubConfig().endpoint), "MODELSCOPE_ENDPOINT"


def await_hub(kind: Kind) -> None:
    """Check that a hub responds, since its client retries for a minute; nothing in offline mode.

    Raises AudioscoreError if it does not respond.
    """
    from huggingface_hub import constants

    if not (kind == "muq" and constants.HF_HUB_OFFLINE):
        await_server(*hub_address(kind))
