"""Tiny pipelines of random weights, one a family, in diffusers' own folder format; and one step of diffusers' own code."""

from tests.pipelines.build import KINDS, build_pipeline
from tests.pipelines.step import run_one_step, sigma_at

__all__ = ["KINDS", "build_pipeline", "run_one_step", "sigma_at"]
