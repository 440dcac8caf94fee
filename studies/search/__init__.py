"""What search while sampling gains at equal network evaluations, and where a reward can decide early."""
