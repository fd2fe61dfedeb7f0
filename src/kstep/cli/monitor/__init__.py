"""A training watched from its metrics.jsonl: log (read, summarise), chart (dots), frame (one screen)."""
