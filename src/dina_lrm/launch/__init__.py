"""Many processes: what an engine for fleets needs to run us; nothing else knows of it."""
