"""How the learning rate goes up, and down again."""

import math


def rate_factor(step: int, steps: int, *, schedule: str, warmup_share: float) -> float:
    """Share of the full learning rate at a step: up a line for `warmup_share` of all steps, then constant or a cosine.

    >>> [round(rate_factor(step, 10, schedule="cosine", warmup_share=0.2), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup  # the first step moves too
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
