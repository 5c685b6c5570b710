"""Who may join and what may leave: certificates, signatures, access rules, data policy."""
