"""Preference optimisation of a generator with a reward."""
