"""What a node keeps on disk: the event log, the model registry, versions."""
