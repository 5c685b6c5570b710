"""Frames over Eclipse Zenoh."""
