"""Generators: a policy with an adapter of its own, how it is sampled, and how a reward is searched for while it is."""

from dina_lrm.generation.adapter_file import read_adapter_config
from dina_lrm.generation.policy import Policy, kind_of
from dina_lrm.generation.sampler import (
    CpsNoise,
    Field,
    FlowNoise,
    Guided,
    StepNoise,
    Trajectory,
    Transition,
    clean,
    gaussian_log_prob,
    ode_step,
    rollout,
    state_at,
)
from dina_lrm.generation.search import Chunked, Counted, Found, RewardGuidance, beam, best_of_n, prune, smc

__all__ = [
    "Chunked",
    "Counted",
    "CpsNoise",
    "Field",
    "FlowNoise",
    "Found",
    "Guided",
    "Policy",
    "RewardGuidance",
    "StepNoise",
    "Trajectory",
    "Transition",
    "beam",
    "best_of_n",
    "clean",
    "gaussian_log_prob",
    "kind_of",
    "ode_step",
    "prune",
    "read_adapter_config",
    "rollout",
    "smc",
    "state_at",
]
