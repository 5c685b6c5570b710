"""The loop that joins both halves: drift, hard examples, labels, gate, rollout."""
