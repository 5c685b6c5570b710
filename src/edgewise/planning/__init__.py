"""Where to cut and where to run: profiles in, plans with predictions out. Pure."""
