"""Runs as HTML: a page of cards for browsers, a table for notebooks.

A record is a run as FLORA writes it, with ``created`` (a datetime) and, where it is known, ``prompt`` beside. Nothing
in a record is trusted: strings are cleaned and escaped, and only http and https addresses become links or sources.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]

STATUSES = ("pending", "running", "completed", "failed")
KINDS = {"imageUrl": "image", "videoUrl": "video", "audioUrl": "audio", "text": "text", "documentUrl": "document"}
LONG = 240
"""From how many characters on a text scrolls, and wants to be reached by keyboard."""

_ADDRESS = re.compile(r"https?://[^/?#@\\\s]+([/?#]\S*)?", re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")
_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"},
    **{code: f"[U+{code:04X}]" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
"""What would change or hide the text around it, as something that can be seen: controls, and turns of direction."""


def clean(value: object) -> str:
    """Give a string that harms no text beside it and can be written as UTF-8."""
    return _SURROGATES.sub("\ufffd", str(value)).replace("\r\n", "\n").translate(_VISIBLE)


def _safe(value: object) -> str:
    return escape(clean(value))


def is_address(url: str) -> bool:
    """Whether a browser may go there: http or https, no credentials, no character that cannot be seen."""
    return url.isprintable() and _ADDRESS.fullmatch(url) is not None


# -- a page: head, then cards, then foot


def head(title: str, subtitle: str, *, live: bool = False) -> str:
    """Begin a page. A *live* one asks for itself again each second, and takes over what has changed."""
    script = _SCRIPT + (_LIVE if live else "")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(_STYLE)}; img-src http: https: data:; "
        "media-src http: https:; base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if live else "")
    )
    again = '<noscript><meta http-equiv="refresh" content="5"></noscript>\n' if live else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{_safe(title)}</title>
<link rel="icon" href="{_ICON}">
{again}<style>{_STYLE}</style>
<script type="module">{script}</script>
</head>
<body>
<a class="skip" href="#runs">Skip to the runs</a>
<header>
<hgroup><h1>{_safe(title)}</h1><p dir="auto">{_safe(subtitle)}</p></hgroup>
<form role="search" aria-label="Filter the runs" hidden>
<label>Search<input type="search" name="words" autocomplete="off" placeholder="prompt, text, model, id"></label>
<label>Status<select name="status">{_options(STATUSES)}</select></label>
<label>Type<select name="kind">{_options((*KINDS.values(), "other"))}</select></label>
</form>
<p class="sum" role="status"></p>
</header>
<main id="runs" tabindex="-1">
"""


def card(record: Record) -> str:
    """Show one run on a page."""
    status, outputs, prompt = str(record["status"]), record.get("outputs") or (), record.get("prompt")
    kind = KINDS.get(outputs[0]["type"], "other") if outputs else ""
    made = "".join(_output(output, record) for output in outputs) or _unmade(record, status)
    state = f"{status} {record.get('progress')}"
    return f"""<article data-run="{_safe(record["run_id"])}" data-status="{_safe(status)}" data-kind="{kind}" \
data-state="{_safe(state)}" data-cost="{_safe(record.get("charged_cost") or 0)}">
<div class="made{" many" if len(outputs) > 1 else ""}">{made}</div>
<div class="told">
<div class="top"><h2><bdi>{_safe(_model(record) or "Run")}</bdi></h2>
<p class="status {status if status in STATUSES else "other"}"><bdi>{_safe(status)}</bdi></p></div>
{"" if prompt is None else _text("prompt", "Prompt", prompt)}{_error(record)}
<dl>{"".join(f"<div><dt>{name}</dt><dd>{shown}</dd></div>" for name, shown in _facts(record))}</dl>
</div>
</article>
"""


def foot() -> str:
    """End a page."""
    return '<p class="none">No runs to show.</p>\n</main>\n</body>\n</html>\n'


def _output(output: Record, record: Record) -> str:
    kind, url, run_id = KINDS.get(output["type"], "other"), str(output["url"]), _safe(record["run_id"])
    if kind == "text":
        return _text("words", "Text", url)
    if not is_address(url):
        return _text("words odd", f"{clean(output['type'])}, no address", url)
    source = f'src="{_safe(url)}"'
    link = f'href="{_safe(url)}" target="_blank" rel="noopener noreferrer"'
    if kind == "image":
        about = f"Image of {run_id}" + (f": {_safe(str(record['prompt'])[:LONG])}" if record.get("prompt") else "")
        return f'<a {link}><img {source} alt="{about}" loading="lazy" decoding="async"></a>'
    if kind in ("video", "audio"):
        return f'<{kind} {source} controls preload="none" aria-label="{kind.title()} of {run_id}"></{kind}>'
    name = "document" if kind == "document" else f"<bdi>{_safe(output['type'])}</bdi>"
    return f'<a class="file" {link}>Open {name}<small><bdi>{_safe(url)}</bdi></small></a>'


def _unmade(record: Record, status: str) -> str:
    said = {"completed": "No output", "failed": "Failed", "pending": "Waiting"}.get(status)
    if said is not None:
        return f'<p class="still">{said}</p>'
    percent = f"{record.get('progress') or 0:.0f}"
    return (
        f'<p class="still moving">{percent} %</p>'
        f'<progress max="100" value="{percent}" aria-label="Progress of {_safe(record["run_id"])}"></progress>'
    )


def _text(name: str, label: str, text: object) -> str:
    shown = clean(text)
    reached = f' tabindex="0" role="group" aria-label="{_safe(label)}"' if len(shown) > LONG else ""
    return f'<p class="{name}" dir="auto"{reached}>{escape(shown)}</p>'


def _error(record: Record) -> str:
    code, message = record.get("error_code"), record.get("error_message")
    if code is None and message is None:
        return ""
    return (
        f'<p class="error" dir="auto"><strong><bdi>{_safe(code or "error")}</bdi></strong> {_safe(message or "")}</p>'
    )


def _model(record: Record) -> str | None:
    model = record.get("model")
    return model.get("model_id") if model else None


def _facts(record: Record) -> Iterable[tuple[str, str]]:
    """Give what a run has beside what it has made: name and HTML."""
    if (cost := record.get("charged_cost")) is not None:
        yield "Cost", f"{cost:,.2f} USD" if round(cost, 2) == cost else f"{cost:,.4g} USD"
    if (created := record.get("created")) is not None:
        yield "Created", f'<time datetime="{created.isoformat()}">{created:%Y-%m-%d %H:%M:%S} UTC</time>'
    yield "Run", f"<code><bdi>{_safe(record['run_id'])}</bdi></code>"


# -- a table, for notebooks: nothing in it is fetched, run or styled beyond itself


def table(records: Iterable[Record], caption: str) -> str:
    """Show runs as a table; outputs as links, texts as text."""
    rows = "".join(map(_row, records))
    names = "".join(f'<th scope="col">{name}</th>' for name in ("Run", "Status", "Model", "Outputs", "Cost", "Created"))
    # The classes keep notebooks from setting what stands between dollar signs as mathematics.
    return (
        f'<table class="tex2jax_ignore mathjax_ignore"><caption>{_safe(caption)}</caption>'
        f"<thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
    )


_TEXT_STYLE = "max-height: 12em; overflow: auto; text-align: start; white-space: pre-wrap; overflow-wrap: anywhere"


def _row(record: Record) -> str:
    facts = dict(_facts(record))
    status = f"<bdi>{_safe(record['status'])}</bdi>"
    if record["status"] not in ("completed", "failed"):
        status += f" {record.get('progress') or 0:.0f} %"
    outputs = "".join(_link(output) for output in record.get("outputs") or ())
    cells = (status, f"<bdi>{_safe(_model(record) or '')}</bdi>", outputs + _error(record))
    money, time = facts.get("Cost", ""), facts.get("Created", "")
    return (
        f'<tr><th scope="row">{facts["Run"]}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}'
        f"<td>{money}</td><td>{time}</td></tr>"
    )


def _link(output: Record) -> str:
    url = str(output["url"])
    if output["type"] == "text" or not is_address(url):
        return f'<div dir="auto" style="{_TEXT_STYLE}">{_safe(url)}</div>'
    link = f'href="{_safe(url)}" target="_blank" rel="noopener noreferrer"'
    return f"<div><bdi>{_safe(output['type'])}</bdi> <a {link}><bdi>{_safe(url)}</bdi></a></div>"


# -- what a page brings along


def _hash(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def _options(values: Iterable[str]) -> str:
    return '<option value="">all</option>' + "".join(f"<option>{value}</option>" for value in values)


_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M8 15V7M8 9C3 9 2 5 2 2c4 0 6 3 6 7Zm0-1c0-3 2-5 6-5 0 3-2 6-6 6' fill='%23278a6b'/%3E%3C/svg%3E"
)

_STYLE = """
:root { color-scheme: light dark; --ground: #f4f2ec; --card: #fff; --well: #e9e6dd; --ink: #21201c; --soft: #5c5950;
  --line: #dbd7cb; --leaf: #0d6b50; --done: #0d6b50; --bad: #a8261c; --busy: #1f58a6; --wait: #7a5200; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #121411; --card: #1c1f1b; --well: #262a25; --ink: #edece5; --soft: #aaa99f; --line: #343932;
    --leaf: #74d3b0; --done: #74d3b0; --bad: #ff9d92; --busy: #93bfff; --wait: #ecbf6c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.45;
  font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; font-size: .9375rem; }
:focus-visible { outline: 3px solid var(--leaf); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; padding: .5rem 1rem; background: var(--card); color: var(--leaf); }
.skip:focus { left: 1rem; top: 1rem; }
header { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: end; max-width: 100rem; margin: auto;
  padding: 2rem clamp(1rem, 3vw, 3rem) 1rem; }
hgroup { flex: 1 1 16rem; min-width: 0; }
h1 { margin: 0; font: 600 clamp(1.7rem, 4vw, 2.4rem)/1.1 "Iowan Old Style", Palatino, Georgia, "Noto Serif", serif;
  letter-spacing: -.01em; }
::placeholder { color: var(--soft); opacity: 1; }
hgroup p { margin: .35rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
form { display: grid; gap: .75rem; grid-template-columns: minmax(10rem, 20rem) 8rem 8rem; }
form[hidden], article[hidden] { display: none; }
label { display: grid; gap: .2rem; color: var(--soft); font-size: .8125rem; }
input, select { font: inherit; font-size: .9375rem; height: 2.5rem; padding: 0 .7rem; min-width: 0; width: 100%;
  color: var(--ink); background: var(--card); border: 1px solid var(--soft); border-radius: .6rem; }
.sum { flex-basis: 100%; margin: 0; color: var(--soft); font-variant-numeric: tabular-nums; min-height: 1.45em; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17.5rem), 1fr)); gap: 1.25rem;
  max-width: 100rem; margin: auto; padding: 0 clamp(1rem, 3vw, 3rem) 4rem; outline: 0; }
article { display: flex; flex-direction: column; min-width: 0; overflow: hidden; background: var(--card);
  border: 1px solid var(--line); border-radius: 1rem; content-visibility: auto; contain-intrinsic-size: auto 27rem; }
.made { display: grid; aspect-ratio: 4/3; min-height: 0; background: var(--well); border-bottom: 1px solid var(--line);
  position: relative; }
.made.many { grid-template-columns: 1fr 1fr; gap: 2px; aspect-ratio: auto; grid-auto-rows: 8rem; overflow: auto; }
.made > * { min-width: 0; min-height: 0; width: 100%; height: 100%; }
.made a { display: block; color: var(--leaf); overflow-wrap: anywhere; }
.made a:focus-visible, .made > :focus-visible { outline-offset: -4px; }
img, video { display: block; width: 100%; height: 100%; object-fit: cover; font-size: .8125rem; color: var(--soft); }
video { object-fit: contain; background: #15171a linear-gradient(160deg, #2c3a3f, #14171a 70%); }
.made > audio { align-self: center; height: 3.4rem; padding: 0 .75rem; }
.words { margin: 0; padding: 1.1rem 1.25rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 1rem/1.5 "Iowan Old Style", Palatino, Georgia, "Noto Serif", serif; }
.odd { font: .8125rem/1.5 ui-monospace, monospace; color: var(--soft); }
.file { padding: 1.25rem; overflow: auto; font-weight: 600; }
.file small { display: block; margin-top: .4rem; font-weight: 400; color: var(--soft); }
.still { display: grid; place-items: center; margin: 0; color: var(--soft); font-size: 1.25rem;
  font-variant-numeric: tabular-nums; }
.made progress { position: absolute; inset: auto 0 0; height: .4rem; appearance: none; border: 0;
  background: var(--line); }
progress::-webkit-progress-bar { background: var(--line); }
progress::-webkit-progress-value { background: var(--busy); }
progress::-moz-progress-bar { background: var(--busy); }
.moving { animation: breathe 2s ease-in-out infinite; }
@keyframes breathe { 50% { opacity: .8; } }
@media (prefers-reduced-motion: reduce) { .moving { animation: none; } }
@media (max-width: 38rem) {
  form { flex-basis: 100%; grid-template-columns: 1fr 1fr; } label:first-child { grid-column: 1 / -1; }
  .made:has(> .still, > audio:only-child) { aspect-ratio: auto; height: 7rem; }
}
.told { display: flex; flex-direction: column; gap: .6rem; flex: 1; padding: .9rem 1.1rem 1rem; }
.told p { margin: 0; }
.top { display: flex; gap: .75rem; justify-content: space-between; align-items: baseline; }
.top > * { overflow-wrap: anywhere; max-height: 4.4em; overflow: auto; min-width: 0; }
h2 { margin: 0; font-size: 1rem; font-weight: 600; }
.status { flex: 0 1 auto; max-width: 50%; font-size: .8125rem; color: var(--tone, var(--soft)); }
.status::before { content: "\\25CB\\A0" / ""; }
.completed { --tone: var(--done); } .failed { --tone: var(--bad); } .running { --tone: var(--busy); }
.pending { --tone: var(--wait); }
.completed::before { content: "\\25CF\\A0" / ""; } .failed::before { content: "\\2715\\A0" / ""; }
.running::before { content: "\\25D0\\A0" / ""; }
.prompt, .error { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 8.7em; overflow: auto; }
.error { color: var(--bad); border-left: 3px solid; padding-left: .7rem; }
dl { display: grid; margin: auto 0 0; gap: .15rem; font-size: .8125rem; font-variant-numeric: tabular-nums; }
dl div { display: flex; gap: .75rem; justify-content: space-between; min-width: 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; text-align: end; }
code { font: .95em ui-monospace, "Cascadia Mono", "Noto Sans Mono", monospace; user-select: all; }
.none { grid-column: 1 / -1; margin: 4rem 0; text-align: center; color: var(--soft); font-size: 1.125rem; }
main:has(article:not([hidden])) .none { display: none; }
@media (prefers-contrast: more) { :root { --soft: var(--ink); --line: var(--ink); } }
@media print { form, .skip { display: none; } article { break-inside: avoid; content-visibility: visible; } }
"""

_SCRIPT = """
const main = document.querySelector("main"), form = document.querySelector("form");
const sum = document.querySelector(".sum"), texts = new WeakMap();
const wordsOf = (card) => {
  if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
  return texts.get(card);
};
const filter = () => {
  const {words, status, kind} = Object.fromEntries(new FormData(form));
  const wanted = words.toLowerCase().split(/\\s+/).filter(Boolean);
  const cards = main.querySelectorAll("article");
  let shown = 0, cost = 0;
  for (const card of cards) {
    const takes = (!status || card.dataset.status === status) && (!kind || card.dataset.kind === kind)
      && wanted.every((word) => wordsOf(card).includes(word));
    card.hidden = !takes;
    if (takes) { shown += 1; cost += Number(card.dataset.cost) || 0; }
  }
  const of = shown === cards.length ? "" : ` of ${cards.length}`;
  const told = `${shown}${of} ${cards.length === 1 ? "run" : "runs"} \\u00b7 ${cost.toFixed(2)} USD`;
  if (sum.textContent !== told) sum.textContent = told;
};
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();
"""

_LIVE = """
const take = (page) => {
  const known = new Map([...main.querySelectorAll("article")].map((card) => [card.dataset.run, card]));
  let place = main.querySelector("article, .none");
  for (const fresh of page.querySelectorAll("article")) {
    let card = known.get(fresh.dataset.run);
    known.delete(fresh.dataset.run);
    if (!card) {
      main.insertBefore(document.importNode(fresh, true), place);
      continue;
    }
    if (card.dataset.state !== fresh.dataset.state) {
      const now = document.importNode(fresh, true);
      card.replaceWith(now);
      card = now;
    }
    place = card.nextElementSibling;
  }
  for (const gone of known.values()) gone.remove();
  filter();
};
const again = async () => {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href, {cache: "no-store"});
      take(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      sum.textContent = "Nobody answers any more: these runs are as they were last seen.";
    }
  }
  setTimeout(again, 1000);
};
setTimeout(again, 1000);
"""
