"""Emulates fleets: real processes on one machine, behind emulated links."""
