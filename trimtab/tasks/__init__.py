"""Tasks whose answers are right or wrong: what to ask, where to stop, how to check."""
