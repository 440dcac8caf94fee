"""Where it runs: files, averages, schedules, logs, and the only door to accelerate."""
