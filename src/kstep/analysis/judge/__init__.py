"""A run set against its reference: structure, ensemble, cost, verdict."""
