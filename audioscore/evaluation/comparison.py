"""Plans against one another on the same clips, and what is left of a difference when several are looked at."""

from collections.abc import Mapping
from typing import Any

from audioscore.errors import UsageError
from audioscore.evaluation.bootstrap import Estimate, or_none
from audioscore.evaluation.estimates import HeldOut, Resampled
from audioscore.evaluation.plan_figures import RANKS, Ranks
from audioscore.evaluation.significance import holm, two_sided_p

BASELINE, HYBRID = "baseline", "hybrid"


def compare_plans(ranks: Mapping[str, Ranks], test: HeldOut) -> dict[str, Any] | None:
    """Spearman(hybrid) - Spearman(baseline) on the same clips, overall and, nested, `within_source`.

    Overall, the recording domain hides what the voice adds. None unless both plans were evaluated.
    """
    if BASELINE not in ranks or HYBRID not in ranks:
        return None
    overall, within = (_estimate(_difference(ranks[HYBRID][name], ranks[BASELINE][name]), test) for name in RANKS)
    return {**overall.as_dict("delta"), "within_source": within.as_dict("delta")}


def compare_variants(ranks: Mapping[str, Ranks], reference: str, test: HeldOut) -> dict[str, Any]:
    """Every other plan minus the reference, with a p value of its own and one for all of them together.

    The p values of the overall and the within-source Spearman are two families: Holm's correction is made in each, over
    all the plans compared, controls included. `reference` must not have been chosen by the test clips. Raises
    UsageError where it was not evaluated.
    """
    if reference not in ranks:
        raise UsageError(f"The reference plan {reference} was not evaluated; got {', '.join(ranks)}.")
    others = [plan for plan in ranks if plan != reference]
    compared: dict[str, dict[str, Any]] = {plan: {} for plan in others}
    for name in RANKS:
        differences = {plan: _difference(ranks[plan][name], ranks[reference][name]) for plan in others}
        p_values = {plan: two_sided_p(found.values) for plan, found in differences.items()}
        adjusted = holm(p_values)
        for plan, found in differences.items():
            compared[plan][name] = {
                **_estimate(found, test).as_dict("delta"),
                "p": or_none(p_values[plan]),
                "p_holm": or_none(adjusted[plan]),
            }
    return {"reference": reference, "family": len(others), "compared": compared}


def default_reference(ranks: Mapping[str, Ranks]) -> str:
    """What plans are compared with where no winner on validation is named: plan A, or the first plan."""
    return BASELINE if BASELINE in ranks else next(iter(ranks))


def _difference(first: Resampled, second: Resampled) -> Resampled:
    return Resampled(first.value - second.value, first.values - second.values)


def _estimate(difference: Resampled, test: HeldOut) -> Estimate:
    return test.judge(difference, undefined="the Spearman of one of the two plans is undefined")
