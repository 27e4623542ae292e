"""Pure: run records as HTML, for the gallery, the sandbox's front page and notebooks. Imports no other module.

A record is FLORA's record of a run as a dict, with two more keys: ``created``, a datetime, and ``prompt`` where it is
known.
"""
