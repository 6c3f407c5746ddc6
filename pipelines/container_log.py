"""A container's log on standard output: as it comes, and to its last byte once the container has ended.

An engine can lose sight of a container's end while its log is followed (Podman 4.3 does so now and then) and then never
ends the stream. So the end is waited for beside it, and what the stream still owes is read from the log that is kept.
"""

import contextlib
import sys
import threading
from typing import Any

GRACE = 3.0  # seconds from a container's end until nothing more is expected of its stream


def follow_log(container: Any) -> None:
    """Print what a container says, until it has ended and all of it is printed."""
    stream, over = container.logs(stream=True, follow=True), threading.Event()
    threading.Thread(target=_close_late, args=(container, stream, over), daemon=True).start()
    printed = 0
    for chunk in stream:
        printed += len(chunk)
        sys.stdout.write(chunk.decode(errors="replace"))
    over.set()
    container.wait()
    sys.stdout.write(container.logs()[printed:].decode(errors="replace"))


def _close_late(container: Any, stream: Any, over: threading.Event) -> None:
    """Close a stream that does not end though its container has."""
    from docker.errors import DockerException
    from requests import RequestException

    with contextlib.suppress(DockerException, RequestException, OSError):  # an interrupt has removed it
        container.wait()
    if not over.wait(GRACE):
        with contextlib.suppress(DockerException, OSError):  # through ssh it cannot be closed
            stream.close()
