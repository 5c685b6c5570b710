"""Transfers large values by digest: stored in a folder, pulled in chunks."""
