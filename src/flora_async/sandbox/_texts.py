"""The sandbox's text outputs: a few sentences about the prompt, the same for the same prompt and seed."""

from __future__ import annotations

from random import Random

_OPENINGS = (
    "At first there was only {prompt}.",
    "Nobody had expected {prompt}, least of all that morning.",
    "It began, as such things do, with {prompt}.",
    "You would have walked past {prompt} without a word.",
)
_MIDDLES = (
    "The light came in low and stayed longer than it should have.",
    "Somewhere a door closed, and the quiet grew a size larger.",
    "Every color in the room seemed to lean a little closer.",
    "The wind turned a page of it, and then another.",
    "What was far away came near, and sat down.",
    "For a moment the whole street held its breath.",
)
_ENDINGS = (
    "And that was enough.",
    "The rest is weather.",
    "Somebody ought to paint it.",
    "By evening it had a name.",
)


def text(prompt: str, pick: Random) -> str:
    """Return sentences about *prompt*, chosen by the random generator *pick*."""
    subject = " ".join(prompt.split()) or "nothing"
    opening = pick.choice(_OPENINGS).format(prompt=subject)
    return " ".join((opening, *pick.sample(_MIDDLES, pick.randint(2, 3)), pick.choice(_ENDINGS)))
