"""Choose the winner among the plans of a run, on clips that no compared model was trained on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from audioscore.config import Plan
from audioscore.errors import DataError
from audioscore.evaluation.bootstrap import cluster_counts, or_none, singer_clusters
from audioscore.evaluation.metrics import within_sources
from audioscore.evaluation.predictions import ClipKey, Prediction, Runs
from audioscore.scoring.scorer import CANDIDATES

RESAMPLES = 500  # for a standard error


@dataclass(frozen=True)
class ComparedPlan:
    """A candidate: its within-source Spearman, and how far it is below the best, with the standard error."""

    spearman_within_source: float | None
    below_best: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class Winner:
    """The plan that wins, the plan with the highest figure, and the clips and singers that they were compared on."""

    plan: Plan
    best: Plan
    clips: int
    singers: int
    out_of_fold: bool
    plans: dict[str, ComparedPlan]

    @property
    def reason(self) -> str:
        """One sentence on the choice."""
        where = "out of fold" if self.out_of_fold else "on validation"
        figure = self.plans[self.best].spearman_within_source
        basis = f"within-source Spearman {figure:.3f} {where}, {self.clips} clips of {self.singers} singers"
        if self.plan == self.best:
            return f"{self.plan} has the highest {basis}"
        below = self.plans[self.plan]
        return (
            f"{self.plan} is the simplest plan within one standard error ({below.standard_error:.3f}) of {self.best}, "
            f"which has the highest {basis}; it is {below.below_best:.3f} below"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, for evaluation.json."""
        return {**asdict(self), "reason": self.reason}


def choose_winner(runs: Runs, representative: Mapping[str, int], cross_validated: Sequence[str]) -> Winner:
    """Choose the candidate with the highest within-source Spearman, or the simplest one within one standard error.

    Cross-validated plans are compared by their out-of-fold predictions of train and val, one run for each; if a
    candidate is not cross-validated, all are compared on val, and its figure is the mean over its seeds. The standard
    error is that of the paired difference to the best plan, by the cluster bootstrap over singers. Of two plans, the
    one that is earlier in CANDIDATES is simpler.

    Raises: DataError without a candidate, or where no candidate has a defined figure.
    """
    candidates = [plan for plan in CANDIDATES if plan in representative]
    if not candidates:
        raise DataError("Winner: no candidate plan was trained. Train baseline or hybrid.")
    everywhere = all(plan in cross_validated for plan in candidates)
    of_plan: dict[Plan, list[dict[ClipKey, Prediction]]] = {}
    for plan in candidates:
        seeds = [representative[plan]] if plan in cross_validated else [seed for name, seed in runs if name == plan]
        splits = ("train", "val") if everywhere else ("val",)
        of_plan[plan] = [
            {key: row for split in splits for key, row in runs[plan, seed][split].items()} for seed in seeds
        ]
    keys = sorted(set.intersection(*(set(rows) for runs_of in of_plan.values() for rows in runs_of)))
    rows = [of_plan[candidates[0]][0][key] for key in keys]
    human, metric = np.array([row.human for row in rows]), within_sources([row.source for row in rows])
    clusters = singer_clusters([row.singer_id for row in rows])
    singers = len(np.unique(clusters))
    outputs = {plan: [np.array([one[key].raw for key in keys]) for one in runs_of] for plan, runs_of in of_plan.items()}
    values = {plan: _mean([float(metric(human, raw)) for raw in found]) for plan, found in outputs.items()}
    defined = [plan for plan in candidates if not math.isnan(values[plan])]
    if not defined:
        raise DataError(
            f"Winner: the within-source Spearman of {len(candidates)} plans is undefined on {len(keys)} clips. Check "
            "the training curves, or add clips."
        )
    best = max(defined, key=lambda plan: values[plan])
    compared = {plan: ComparedPlan(or_none(values[plan])) for plan in candidates}
    winner = best
    if singers > 1 and len(defined) > 1:
        counts = cluster_counts(clusters, RESAMPLES, 0)
        resampled = {
            plan: np.mean([np.nan_to_num(metric(human, raw, counts)) for raw in outputs[plan]], axis=0)
            for plan in defined
        }
        for plan in defined:
            if plan != best:
                error = float(np.std(resampled[best] - resampled[plan], ddof=1))
                compared[plan] = ComparedPlan(values[plan], values[best] - values[plan], error)
        near = (one for one in defined if one == best or _within_error(compared[one]))
        winner = next(near)
    return Winner(winner, best, len(keys), singers, everywhere, {str(plan): one for plan, one in compared.items()})


def _within_error(plan: ComparedPlan) -> bool:
    return plan.below_best is not None and plan.standard_error is not None and plan.below_best <= plan.standard_error


def _mean(values: Sequence[float]) -> float:
    """The mean; undefined values, of constant predictions, count as 0, unless all are undefined."""
    if all(math.isnan(value) for value in values):
        return math.nan
    return float(np.mean(np.nan_to_num(np.array(values))))
