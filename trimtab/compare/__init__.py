"""A/B of two decoding set-ups: what was asked, what was measured, what may be said about the difference."""
