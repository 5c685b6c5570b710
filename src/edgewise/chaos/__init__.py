"""Tries a fleet by campaigns of faults: each is drawn from a seed, judged by invariants, and can be done again."""
