"""Tracks which nodes are alive: liveliness tokens, incarnations, suspicion."""
