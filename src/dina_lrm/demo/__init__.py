"""The main job on the emoji world: encode, train, evaluate, rank, report."""

from dina_lrm.demo.settings import FAST, FULL, Budget
from dina_lrm.demo.story import run_demo

__all__ = ["FAST", "FULL", "Budget", "run_demo"]
