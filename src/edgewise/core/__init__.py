"""Holds the values every layer uses: ids, layouts, units, seeds, time, provenance, errors. No I/O."""
