"""Trajectories judged: `measure` what they hold, `metrics` that say it in numbers, `judge`, and `show` the outcome."""
