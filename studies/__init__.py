"""Experiments: each one command, one page, resumable."""
