"""Worlds to experiment in: art, a generator, an independent judge."""
