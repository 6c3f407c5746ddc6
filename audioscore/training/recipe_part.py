"""What each plan is trained as: its head, what of MuQ is tuned with it, and by which settings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audioscore.config import Plan
from audioscore.scoring.scorer import BRANCHES, CANDIDATES, Tuning
from audioscore.training.objective import Objective
from audioscore.training.step import FitSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audioscore.config import TrainingSection
    from audioscore.encoders.features import Kind


@dataclass(frozen=True)
class Recipe:
    """Arguments of `build_head`, and what of MuQ goes with the head. `adversary`: whether a speaker is unlearned."""

    head: dict[str, Any]
    tuning: Tuning | None
    adversary: bool

    @property
    def tunes_what_is_heard(self) -> bool:
        """Whether MuQ is tuned, and the head hears its output: what a frozen MuQ makes is where training begins."""
        return self.tuning is not None and self.tuning.mode != "frozen" and not self.tuning.mix


def recipe_of(plan: Plan, settings: "TrainingSection", dims: "Mapping[Kind, int]") -> Recipe:
    """A plan's recipe; `dims` are the encoders' sizes. Controls are always light, on frozen encoders."""
    own: dict[str, int] = {kind: dims[kind] for kind in BRANCHES[plan]}
    sizes = settings.model_dump(include={"width", "hidden", "dropout"})
    if plan not in CANDIDATES:
        kind = "attention" if plan == "muq_frozen" else "light"
        return Recipe({"dims": own, **sizes, "kind": kind}, None, adversary=False)
    return Recipe(_head(plan, settings, own, sizes), _tuning(settings), settings.adversary.weight > 0)


def _head(plan: Plan, settings: "TrainingSection", dims: dict[str, int], sizes: dict[str, Any]) -> dict[str, Any]:
    if settings.head == "predecessor" and plan == "baseline":
        return {"kind": "predecessor", "dim": dims["muq"], "hidden": settings.hidden}
    if settings.head == "light":
        return {"dims": dims, **sizes, "kind": "light", "pooled": settings.fusion == "pooled"}
    # The predecessor's head hears MuQ alone: beside it, the hybrid's is its closest kin, trained from scratch.
    attention = {"heads": settings.attention_heads, "layers": settings.attention_layers}
    return {"dims": dims, **sizes, "kind": "songeval", "pooled": settings.fusion == "pooled", **attention}


def _tuning(settings: "TrainingSection") -> Tuning | None:
    if settings.prefix_layer is None:
        return None
    lora = settings.lora if settings.tuning == "lora" else None
    return Tuning(
        settings.tuning,
        settings.prefix_layer,
        None if lora is None else lora.rank,
        None if lora is None else lora.alpha,
        mix=settings.layers == "mix",
    )


def fit_settings(settings: "TrainingSection", recipe: Recipe) -> FitSettings:
    """What the loop needs of a configuration."""
    objective = settings.model_dump(
        include={"loss", "margin_per_point", "order_margin", "absolute_weight", "absolute_beta"}
    )
    options = settings.model_dump(include=set(FitSettings.__dataclass_fields__))
    return FitSettings(
        objective=Objective(**objective),
        **options,
        adversary_weight=settings.adversary.weight if recipe.adversary else 0.0,
    )
