"""Serving roles on a running fleet: deployments, drift, labels."""
