"""Why a step in a container failed without an error of its own, as far as its log tells."""

import re
from pathlib import Path

from audioscore.platforms import ContainersSection

# What the runner of containers writes at the end of a log.
OUT_OF_MEMORY = "[container ended: out of memory]"
WAS_KILLED = "[container ended: killed]"
# The last line of a traceback, or the interpreter's word that there is no such module to run.
FAULT = re.compile(
    r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)\b|/\S+python\S*: No module).*$", re.MULTILINE
)
LACKING = re.compile(r"(?:ModuleNotFoundError|/\S+python\S*): No module named '?(?P<module>[\w.]+)'?")


def outside_cause(log: Path, section: ContainersSection) -> str | None:
    """What stopped a step from outside, and what to do; None where the log names nothing of the kind."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if OUT_OF_MEMORY in text:
        allowed = f"its {section.memory}" if section.memory else "what this machine has"
        return f"was killed for memory: it needed more than {allowed}. Raise containers.memory, or free memory."
    if WAS_KILLED in text:
        return "was killed from outside, most likely for memory. Free some, raise containers.memory, and --resume."
    faults = FAULT.findall(text)  # the last one ended the step; others may have been caught
    if faults and (found := LACKING.match(faults[-1])):
        return f"found no module {found['module']} in the image {section.image}. Build it anew: `make image`."
    return None
