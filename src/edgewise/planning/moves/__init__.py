"""Dimensions of a plan beside placement, each a generator of plans."""
