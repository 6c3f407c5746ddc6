"""The model that an alias points at: loaded at the start, and again where the alias has moved."""

import asyncio
import logging

from audioscore.serving.model import Which, load_served, which_model
from audioscore.serving.service import Service

log = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0  # s between tries to load a version that fails


async def keep_current(service: Service, model: str | None, *, device: str, fast: bool) -> None:
    """Load what `model` names into the service, then follow its alias until cancelled.

    Where the first cannot be loaded, `service.failure` says why; later the model in use is kept, and the log has one
    sentence for each fault that is new.
    """
    try:
        which = await asyncio.to_thread(which_model, model)
        await _use(service, which, device, fast)
    except Exception as fault:  # the process ends with it
        service.failure = fault
        return
    log.warning("%s scores", which.source)
    said, failures = "", 0
    while service.settings.watch_seconds and (model is None or "@" in model):
        every = service.settings.watch_seconds
        await asyncio.sleep(min(every * 2**failures, max(every, LONGEST_WAIT)))
        try:
            now = await asyncio.to_thread(which_model, model)
            if now.source == which.source:
                failures = 0
                continue
            await _use(service, now, device, fast)
        except Exception as fault:  # a registry that is away or a broken champion must not stop the service
            failures = min(failures + 1, 12)
            if str(fault) != said:
                said = str(fault)
                log.warning("%s is kept: %s", which.source, said)
                service.metrics.switch("failed")
            continue
        log.warning("%s now scores in place of %s", now.source, which.source)
        service.metrics.switch("done")
        which, said, failures = now, "", 0


async def _use(service: Service, which: Which, device: str, fast: bool) -> None:
    served = await asyncio.to_thread(load_served, which, service.settings, device=device, fast=fast)
    await service.use(served)
