"""Edgewise trains and runs models together across device, edge and cloud."""

__version__ = "0.2.0"

__all__ = ["__version__"]
