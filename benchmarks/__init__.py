"""Measurements of this package, and of its peers. Run them from the root of the repository."""
