"""Pure: records of runs as HTML, for the gallery, the sandbox's front page and notebooks. It knows no room of ours.

A record is what FLORA says of a run, as a plain dict, and two things that FLORA's record does not hold: ``created``, a
datetime, and, where somebody knows it, ``prompt``.
"""
