"""Federated training: five parts joined by a protocol."""
