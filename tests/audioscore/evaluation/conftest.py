from collections.abc import Callable

import numpy as np
import pytest

from audioscore.evaluation.predictions import Prediction

MakePredictions = Callable[..., list[Prediction]]


@pytest.fixture(scope="session")
def make_predictions() -> MakePredictions:
    """Predictions of `plans` {name: noise} for two seeds: 12 test singers with 4 clips, half KTV, half a cappella."""

    def make(plans: dict[str, float] | None = None, seeds: tuple[int, ...] = (0, 1)) -> list[Prediction]:
        noise = plans or {"baseline": 6.0, "hybrid": 2.0}
        rng = np.random.default_rng(0)
        scores = {
            index: round(float(rng.uniform(50, 85) if index % 8 < 4 else rng.uniform(85, 99)), 1) for index in range(96)
        }
        rows = []
        for plan, spread in noise.items():
            for seed in seeds:
                errors = np.random.default_rng([seed, len(plan)]).normal(0, spread, 96)
                for index, score in scores.items():
                    split = "test" if index < 48 else "val" if index < 72 else "train"
                    predicted = float(score + errors[index])
                    rows.append(
                        Prediction(
                            sha256=f"{index:064x}",
                            audio_file=f"audio/{index:03d}.m4a",
                            split=split,
                            singer_id=f"singer{index // 4}",
                            song_id=f"song{index % 5}",
                            source="ktv" if index % 8 < 4 else "acapella",
                            score=score,
                            plan=plan,
                            seed=seed,
                            raw=predicted / 20,
                            predicted=predicted,
                            lo=predicted - 5,
                            hi=predicted + 5,
                        )
                    )
        return rows

    return make
