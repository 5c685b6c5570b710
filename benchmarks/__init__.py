"""Programs a user can run: `python -m benchmarks.NAME [--short] [--json]`. Each ends with one JSON line."""
