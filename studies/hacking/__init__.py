"""Does the monitor tell a run that fools its reward from one that does not, and how early?"""
