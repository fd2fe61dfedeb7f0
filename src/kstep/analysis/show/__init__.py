"""What a person sees of it: tables, plots, the report."""
