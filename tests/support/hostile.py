"""Strings that try to be more than text: in an element, an attribute, an address, a style, a script, a notebook."""

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

CANARY = "ranAnyway"
"""What each of them would set, if it ran."""

_DO = f"window.{CANARY}=1"
_NOBODY = "http://127.0.0.1:9"

STRINGS: tuple[str, ...] = (
    # elements
    f"<script>{_DO}</script>",
    f"<ScRiPt >{_DO}</sCrIpT >",
    f"<script src=data:,{_DO}></script>",
    f"<img src=x onerror={_DO}>",
    f"<svg/onload={_DO}>",
    f"<svg><script>{_DO}</script></svg>",
    f"<svg><animate onbegin={_DO} attributeName=x dur=1s>",
    f"<math><mtext><table><mglyph><style><img src onerror={_DO}>",
    f"<iframe srcdoc='<script>parent.{CANARY}=1</script>'></iframe>",
    f"<object data='data:text/html,<script>{_DO}</script>'></object><embed src=javascript:{_DO}>",
    f"<details open ontoggle={_DO}><summary>x</summary></details>",
    f"<input autofocus onfocus={_DO}><body onload={_DO}>",
    f"<template><script>{_DO}</script></template><noscript><p title='</noscript><img src onerror={_DO}>'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{_DO}'>",
    f"<base href='{_NOBODY}/'><link rel=stylesheet href=x.css>",
    "<form id=runs><input name=children><img name=getElementById></form><a id=words href=x>",
    # ends of what it may stand in
    f"</script><script>{_DO}</script>",
    f"</style></title></textarea></noscript><img src onerror={_DO}>",
    f"</bdi></h2></article></li></ul></main></body></html><script>{_DO}</script>",
    f"</td></tr></table></div><script>{_DO}</script>",
    f"--><script>{_DO}</script><!--",
    f"<!--><img src onerror={_DO}>",
    f"]]><script>{_DO}</script><![CDATA[",
    f"<?xml version='1.0'?><!DOCTYPE html [<!ENTITY x '<script>{_DO}</script>'>]>&x;",
    # attributes
    f'" onmouseover="{_DO}" autofocus onfocus="{_DO}" x="',
    f"' onmouseover='{_DO}' style='animation:x' onanimationstart='{_DO}",
    f"` onload=`{_DO}` //",
    f'"><script>{_DO}</script>',
    f"'><svg onload={_DO}>",
    f"x onerror={_DO} /onload={_DO}",
    # entities, which are text too
    f"&lt;script&gt;{_DO}&lt;/script&gt; &amp;quot; &#60;img src onerror={_DO}&#62;",
    f"&lt;&#x3c;\\u003cscript\\u003e{_DO}\\x3c/script\\x3e%3Cscript%3E",
    # templates, formulas, styles
    f"{{{{constructor.constructor('{_DO}')()}}}} ${{{_DO}}} <%= {_DO} %> #{{{_DO}}} {{0}} %s %(x)s",
    f"$\\href{{javascript:{_DO}}}{{x}}$ $$\\style{{position:fixed;inset:0}}{{x}}$$ \\(\\require{{html}}\\)",
    f"<style>@import '{_NOBODY}/x.css';*{{background:url(javascript:{_DO})}}</style>",
    f"x;background:url('javascript:{_DO}');position:fixed;inset:0;expression({_DO})",
    # addresses
    f"javascript:{_DO}",
    f"JaVaScRiPt:{_DO}//https://flora.ai/x.png",
    f"java\tscr\nipt:{_DO}",
    f"\x01\x1f javascript:{_DO}",
    f"javascript&colon;{_DO}&Tab;",
    f"data:text/html,<script>{_DO}</script>",
    f"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='{_DO}'/>",
    f"vbscript:{_DO}",
    "file:///etc/passwd",
    f"//127.0.0.1:9/x\\@{_NOBODY}",
    "https://flora.ai:secret@127.0.0.1:9/x.png",
    f'{_NOBODY}/x.png" onerror="{_DO}',
    f"{_NOBODY}/x.png\x00' onerror='{_DO}",
    # characters
    "its end \u202egnp.exe\u202c \u2066\u2067\u202d and what follows\x00\x07\x1b[31m\x7f\x85\u2028\u2029\ufeff\uffff",
    "half \ud83d of a character, \udc00 the other half",
    "Z" + "\u0300\u0489\u0316" * 200 + "algo",
    "<b>" * 30_000 + "x" * 100_000,
)

_FORCED = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe\uffff")


def as_shown(string: str) -> str:
    """Say how a string has to be found on a page: as it is, but for what is no text."""
    return "".join(
        "\ufffd" if char in _FORCED or (unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n") else char
        for char in string
    )


def records() -> Iterator[dict[str, Any]]:
    """Give runs with each of the strings in each of their parts."""
    when = {"created_at": 0, "created": datetime(2026, 7, 1, tzinfo=UTC), "progress": 100}
    for string in STRINGS:
        kinds = ("text", "imageUrl", "videoUrl", "audioUrl", "documentUrl", string)
        outputs = [{"output_id": string, "type": kind, "url": string} for kind in kinds]
        parts = dict.fromkeys(("run_id", "generation_id", "project_id", "workspace_id", "prompt"), string)
        made = {"status": "completed", "charged_cost": 0.5, "model": {"model_id": string}, "outputs": outputs}
        yield when | parts | made
        yield {**when, "run_id": string, "status": "failed", "error_code": string, "error_message": string}
        yield {**when, "run_id": string, "status": string, "outputs": outputs[1:2], "type": string}
