"""Runs one node: identity, uplinks, signed messages, delivery."""
