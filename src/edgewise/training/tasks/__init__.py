"""Built-in tasks: models of the zoo on data sets that ship with a dependency."""
