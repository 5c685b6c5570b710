"""The same functions under a virtual clock."""
