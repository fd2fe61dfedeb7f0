"""Trajectories judged: `measure` what they hold, `metrics` say it in numbers, `judge` them, `show` what was found."""
