"""Stores on disk: the event log, the model registry, versions."""
