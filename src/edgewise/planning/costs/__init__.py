"""What a plan costs: seconds, bytes and joules of stages and hand-overs."""
