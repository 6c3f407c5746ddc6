import math

import pytest

from audioscore.training.step import rate_factor


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup_share", [0.0, 0.05, 0.3, 1.0])
def test_the_closed_form_at_every_step(steps: int, warmup_share: float) -> None:
    warmup = round(steps * warmup_share)
    for step in range(steps + 3):
        if step < warmup:
            rising = (step + 1) / warmup
            wanted = {"constant": rising, "cosine": rising}
        else:
            done = min(1.0, (step - warmup) / max(1, steps - warmup))
            wanted = {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
        for schedule, factor in wanted.items():
            assert rate_factor(step, steps, schedule=schedule, warmup_share=warmup_share) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_no_step_stands_still_but_the_one_after_the_last(schedule: str) -> None:
    factors = [rate_factor(step, 40, schedule=schedule, warmup_share=0.1) for step in range(40)]
    assert min(factors) > 0
    assert max(factors) == 1.0
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rate_factor(40, 40, schedule="cosine", warmup_share=0.1) == pytest.approx(0.0)
