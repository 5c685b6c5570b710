"""Who answers the questions of local work: one client after the other, stacked, or a compiled kernel."""
