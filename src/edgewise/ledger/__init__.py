"""Accounts for cost: wire bytes, seconds, joules, per node and purpose."""
