"""Trajectories judged: `measure` what they hold, `metrics` that say it in numbers, `judge` them, `show` what was found."""
