"""The version, by the head of CHANGELOG.md: written as the package is built."""

__version__ = "0.1.0"
"""The version of this package."""
