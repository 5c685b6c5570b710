"""Campaigns against real processes: a fleet that trains, serves and changes versions while its machines and links fail."""
