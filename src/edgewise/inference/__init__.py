"""Answering requests along a plan: profiler, stages, session, exits, fallback."""
