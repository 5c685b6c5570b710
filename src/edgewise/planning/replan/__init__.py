"""Following the link and the load: when another plan of the map is better."""
