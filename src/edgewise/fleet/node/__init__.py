"""One node's process: identity, uplinks, signed messages, delivery."""
