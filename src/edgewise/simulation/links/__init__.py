"""Emulates links: a TCP proxy with rate, delay, jitter, loss and outage."""
