"""Where a request may end before the last stage."""
