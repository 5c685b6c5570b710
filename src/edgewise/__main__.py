"""`python -m edgewise` is the `edgewise` program."""

from edgewise.cli.main import main

main()
