"""The machines: membership, agent, coordinator, store."""
