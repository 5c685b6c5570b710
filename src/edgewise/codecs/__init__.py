"""Fewer bytes on a link: one kind of value for updates going up and activations crossing a cut."""
