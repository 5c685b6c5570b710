"""Training roles on a running fleet."""
