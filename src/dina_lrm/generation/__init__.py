"""Generators: a policy with an adapter of its own, and how it is sampled."""

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

__all__ = [
    "CpsNoise",
    "Field",
    "FlowNoise",
    "Guided",
    "Policy",
    "StepNoise",
    "Trajectory",
    "Transition",
    "clean",
    "gaussian_log_prob",
    "kind_of",
    "ode_step",
    "rollout",
    "state_at",
]
