"""Large values by digest: kept in a folder, pulled in chunks."""
