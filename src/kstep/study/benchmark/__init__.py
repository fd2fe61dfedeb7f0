"""Running and judging one molecule with every scheme: what 07_benchmark.py is made of."""
