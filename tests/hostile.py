"""Strings that want to be more than text: fifty of them, for all that shows text to a browser."""

from datetime import UTC, datetime
from typing import Any

from flora_async import Generation, ModelRef, Output

CANARY = "__canary"
"""The global that is set if one of them runs."""

_RUN = f"window.{CANARY}=1"

HOSTILE = (
    # text that opens an element
    f"<script>{_RUN}</script>",
    f"<ScRiPt >{_RUN}</sCrIpT>",
    f"<script src=data:text/javascript,{_RUN}></script>",
    f"<script type=module>{_RUN}</script>",
    f"<img src=x onerror={_RUN}>",
    f"<img/src='x'/onerror='{_RUN}'>",
    f"<svg onload={_RUN}>",
    f"<svg><script>{_RUN}</script></svg>",
    f"<svg><animate onbegin={_RUN} attributeName=x dur=1s>",
    f'<svg><a xlink:href="javascript:{_RUN}"><text>x</text></a></svg>',
    f"<math><mtext></p><style><img src=x onerror={_RUN}></style></mtext></math>",
    f"<iframe srcdoc='<script>parent.{CANARY}=1</script>'></iframe>",
    f"<iframe src=javascript:parent.{CANARY}=1></iframe>",
    f"<object data=javascript:{_RUN}></object>",
    f"<embed src=javascript:{_RUN}>",
    f"<body onload={_RUN}>",
    f"<details open ontoggle={_RUN}>x</details>",
    f"<input autofocus onfocus={_RUN}>",
    f"<video><source onerror={_RUN}></video>",
    f"<marquee onstart={_RUN}>x</marquee>",
    f"<button popovertarget=x>x</button><p popover id=x onbeforetoggle={_RUN}>",
    # text that ends what it stands in
    f"</p></article></main><script>{_RUN}</script>",
    f"</title><script>{_RUN}</script>",
    f"</style><script>{_RUN}</script>",
    f"</script><script>{_RUN}</script>",
    f"</textarea></noscript></template><script>{_RUN}</script>",
    f"--><script>{_RUN}</script><!--",
    f"<!--><img src=x onerror={_RUN}>-->",
    f"<![CDATA[<script>{_RUN}</script>]]>",
    f"<template><script>{_RUN}</script></template><template shadowrootmode=open><img src=x onerror={_RUN}></template>",
    # attributes
    f'" onmouseover="{_RUN}" autofocus onfocus="{_RUN}',
    f"' onmouseover='{_RUN}' autofocus onfocus='{_RUN}",
    f'"><img src=x onerror={_RUN}>',
    f"` onload={_RUN} `",
    f"x onerror={_RUN} y=",
    # addresses
    f"javascript:{_RUN}",
    f"JaVaScRiPt:{_RUN}//https://media.flora.ai/a.png",
    f"java\tscript:{_RUN}",
    f"\x01javascript:{_RUN}",
    f"data:text/html,<script>parent.{CANARY}=1</script>",
    f'vbscript:Execute("{CANARY}")',
    f'http://127.0.0.1:1/a.png" onerror="{_RUN}',
    # styles, entities, templates
    f"</style><style>*{{display:none}}body{{background:url(javascript:{_RUN})}}",
    f"&lt;script&gt;{_RUN}&lt;/script&gt; &#60;script&#62; &#x3c;img src=x&#x3e; &quot;",
    f"{{{{constructor.constructor('{_RUN}')()}}}} ${{{_RUN}}} <%={_RUN}%> $x^2$ \\(x\\)",
    # characters
    f"nul\0l <scr\0ipt>{_RUN}</scr\0ipt>",
    "cost 5 \u202e USD 0 \u2066gpj.exe\u2067 \u202d end \u2029 of line",
    "half a pair \ud83d, and the other half \udc36 first",
    f"\N{FULLWIDTH LESS-THAN SIGN}script\N{FULLWIDTH GREATER-THAN SIGN}{_RUN} +ADw-script+AD4-{_RUN}+ADw-/script+AD4-",
    f"<b>{'huge ' * 40_000}</b><script>{_RUN}</script>",
)


def hostile_record(text: str) -> dict[str, Any]:
    """Give a run whose every string is *text*, with an output of each type."""
    types = ("imageUrl", "videoUrl", "audioUrl", "text", "documentUrl", text)
    return {
        **dict.fromkeys(("run_id", "status", "error_code", "error_message", "prompt"), text),
        **dict.fromkeys(("generation_id", "project_id", "workspace_id"), text),
        "progress": 50,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "created_at": 1767225600000,
        "charged_cost": 0.04,
        "outputs": [{"output_id": text, "type": kind, "url": text} for kind in types],
        "model": {"model_id": text},
    }


def hostile_generation(text: str) -> Generation:
    """Give the same as a Struct."""
    record = hostile_record(text)
    del record["prompt"], record["created"]
    outputs = tuple(Output(**output) for output in record.pop("outputs"))
    return Generation(outputs=outputs, model=ModelRef(**record.pop("model")), **record)
