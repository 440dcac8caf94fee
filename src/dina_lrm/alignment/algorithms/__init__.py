"""One file a paper's algorithm."""

from dina_lrm.alignment.algorithms.base import Actors, Algorithm, Judged, PromptBatch, Step
from dina_lrm.alignment.algorithms.dpo import FlowDpo
from dina_lrm.alignment.algorithms.draft import Draft
from dina_lrm.alignment.algorithms.flow_grpo import FlowGrpo
from dina_lrm.alignment.algorithms.nft import Nft
from dina_lrm.alignment.algorithms.refl import Refl
from dina_lrm.alignment.algorithms.step_dpo import StepDpo

__all__ = [
    "Actors",
    "Algorithm",
    "Draft",
    "FlowDpo",
    "FlowGrpo",
    "Judged",
    "Nft",
    "PromptBatch",
    "Refl",
    "Step",
    "StepDpo",
]
