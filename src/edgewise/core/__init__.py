"""Values everyone speaks: ids, layouts, units, seeds, time, provenance, errors. No I/O."""
