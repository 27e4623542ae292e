"""Pure: a run as a card with its outputs and its facts, or as a row of a notebook's table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from flora_async._html.escape import EXCERPT_LENGTH, collapsible, safe_link, text

Record: TypeAlias = Mapping[str, Any]

STATUSES = ("completed", "running", "pending", "failed")
TYPES = ("image", "video", "audio", "text")
OTHER = "other"
"""For types and statuses unknown to this version, and for runs without outputs and without a known type."""

_KINDS = {"imageUrl": "image", "videoUrl": "video", "audioUrl": "audio", "text": "text", "documentUrl": "document"}


def status_of(record: Record) -> str:
    """Return the status filter that shows a run."""
    return record["status"] if record["status"] in STATUSES else OTHER


def types_of(record: Record) -> list[str]:
    """Return the type filters that show a run."""
    kinds = [_KINDS.get(output["type"], OTHER) for output in record.get("outputs") or ()]
    found = kinds or [record.get("type", OTHER)]
    return sorted({kind if kind in TYPES else OTHER for kind in found})


def card(record: Record) -> str:
    """Return a run as an item of the list."""
    status, types = status_of(record), types_of(record)
    prompted = " data-prompt" if record.get("prompt") else ""
    focusable = "" if record.get("outputs") else ' tabindex="0"'
    return (
        f'<li class="card" data-run="{text(record["run_id"])}" data-status="{status}" data-types="{" ".join(types)}"'
        f' data-created="{record["created"].timestamp():.3f}" data-cost="{record.get("charged_cost") or 0}"{prompted}>'
        f'<article{focusable}><div class="about">{_heading(record, types)}{_facts(record)}</div>'
        f'<div class="made">{_outputs(record)}</div></article></li>\n'
    )


def _heading(record: Record, types: Sequence[str]) -> str:
    if prompt := record.get("prompt"):
        return collapsible(prompt, "h2")
    kind = types[0].capitalize() if types != [OTHER] else "Run"
    model = _model(record)
    return collapsible(f"{kind} by {model}" if model else f"{kind} {record['run_id']}", "h2")


def _model(record: Record) -> str | None:
    model: Record | None = record.get("model")
    return model.get("model_id") if model else None


def _facts(record: Record) -> str:
    facts = [("Status", f'<span class="status">{text(record["status"])}</span>')]
    if record.get("charged_cost") is not None:
        facts.append(("Cost", usd(record["charged_cost"])))
    facts.append(("Created", moment(record["created"])))
    if model := _model(record):
        facts.append(("Model", f'<bdi class="id">{text(model)}</bdi>'))
    if project := record.get("project_id"):
        facts.append(("Project", f'<bdi class="id">{text(project)}</bdi>'))
    facts.append(("Run", f'<bdi class="id">{text(record["run_id"])}</bdi>'))
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{parts}</dd></div>' for name, parts in facts)}</dl>"


def usd(cost: float) -> str:
    """Format an amount with at least two decimals, and up to four."""
    whole, _, parts = f"{cost:,.4f}".partition(".")
    return f"{whole}.{parts[:2]}{parts[2:].rstrip('0')} USD"


def moment(when: datetime) -> str:
    """Format a time in UTC."""
    return f'<time datetime="{when:%Y-%m-%dT%H:%M:%SZ}">{when:%Y-%m-%d %H:%M} UTC</time>'


def _outputs(record: Record) -> str:
    outputs = record.get("outputs") or ()
    if outputs:
        return "".join(_output(output, record) for output in outputs)
    if record["status"] == "failed":
        return f'<div class="failure">{failure_reason(record)}</div>'
    if record["status"] == "completed":
        return '<p class="nothing">Nothing was made.</p>'
    share = min(max(record["progress"], 0), 100)
    return (
        f'<p class="progress"><progress max="100" value="{share:g}" aria-label="Progress"></progress>{share:.0f} %</p>'
    )


def failure_reason(record: Record) -> str:
    """Return the error code and message of a failed run."""
    code, message = record.get("error_code"), record.get("error_message")
    parts = [f"<strong>{text(code)}</strong>"] if code else []
    return " ".join([*parts, collapsible(message or ("" if code else "FLORA does not say why."))])


def _output(output: Record, record: Record) -> str:
    kind = _KINDS.get(output["type"], OTHER)
    if kind == "text":
        return f'<div class="text" dir="auto" tabindex="0" role="group" aria-label="Text">{text(output["url"])}</div>'
    local = output.get("local")  # the URL of a saved file, below the folder of the page
    url = safe_link(output["url"]) if local is None else text(local)
    if url is None:
        return f'<div class="unlinked">{unsafe_address(output)}</div>'
    name = _media_label(kind, record)
    if kind == "image":
        return f'<a href="{url}" target="_blank" rel="noopener"><img src="{url}" alt="{name}" loading="lazy"></a>'
    if kind in ("video", "audio"):
        return f'<{kind} src="{url}" aria-label="{name}" controls preload="none"></{kind}>'
    return f'<p class="link">{output_link(output, url)}</p>'


def _media_label(kind: str, record: Record) -> str:
    """Return the accessible label of a medium."""
    prompt = str(record.get("prompt") or "")
    return text(
        f"{kind.capitalize()}: {prompt[:EXCERPT_LENGTH]}" if prompt else f"{kind.capitalize()} of {record['run_id']}"
    )


def output_link(output: Record, url: str) -> str:
    """Return a link labelled with the type of the output."""
    kind = _KINDS.get(output["type"], output["type"])
    return f'<a href="{url}" target="_blank" rel="noopener noreferrer"><bdi>{text(kind)}</bdi></a>'


def unsafe_address(output: Record) -> str:
    """Return an unsafe address as text, not as a link."""
    return f"<bdi>{text(output['type'])}</bdi> at an address that is not linked: {collapsible(output['url'])}"


def table(records: Sequence[Record], caption: str) -> str:
    """Return runs as a table for notebooks. The table loads, styles and runs nothing."""
    names = ("run", "status", "created", "cost", "outputs")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(f"<tr>{''.join(_cells(record))}</tr>" for record in records)
    # Notebooks render text between dollar signs as formulas, which can hold links and styles: turn that off.
    return (
        f'<div class="tex2jax_ignore mathjax_ignore"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cells(record: Record) -> Iterator[str]:
    model = _model(record)
    yield f'<th scope="row"><bdi>{text(record["run_id"])}</bdi>{f"<br><bdi>{text(model)}</bdi>" if model else ""}</th>'
    running = f" {record['progress']:.0f} %" if status_of(record) in ("running", OTHER) else ""
    yield f"<td>{text(record['status'])}{running}</td>"
    yield f"<td>{moment(record['created'])}</td>"
    yield f"<td>{'' if record.get('charged_cost') is None else usd(record['charged_cost'])}</td>"
    parts = [failure_reason(record)] if record["status"] == "failed" else []
    for output in record.get("outputs") or ():
        if output["type"] == "text":
            parts.append(collapsible(output["url"]))
        else:
            url = safe_link(output["url"])
            parts.append(unsafe_address(output) if url is None else output_link(output, url))
    yield f"<td>{'<br>'.join(parts)}</td>"
