"""A run set against its reference, and against plain MD: values, no words."""
