"""Smaller models: quantise."""
