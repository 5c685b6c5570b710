"""Who is here: liveliness tokens, incarnations, suspicion."""
