"""``flora-async assets``: upload files, and look at the uploaded ones."""

from __future__ import annotations

import argparse

from flora_async import Flora, ListedAsset
from flora_async.cli import arguments, output

REPORT_STEP = 10
"""Percent between two reports of an upload, where reports are lines."""


async def run(flora: Flora, options: argparse.Namespace) -> None:
    """Run one of the operations."""
    if options.operation == "upload":
        await _upload(flora, options)
    elif options.operation == "retrieve":
        output.print_json(output.to_dict(await flora.assets.retrieve(options.asset_id)))
    else:
        limit = options.limit if options.limit is not None else 100
        listed: list[ListedAsset] = []
        async for asset in flora.assets.list(
            limit=min(limit, 100), query=options.query, workspace_id=options.workspace_id, project_id=options.project_id
        ):
            listed.append(asset)
            if len(listed) == limit:
                break
        output.print_list("assets", listed, ListedAsset, options.format)


async def _upload(flora: Flora, options: argparse.Namespace) -> None:
    """Upload files one after another, and print each asset."""
    show = output.print_json if len(options.file) == 1 else output.print_json_line
    with output.show_progress() as report:
        for file in options.file:
            asset = await flora.assets.upload(
                arguments.open_stdin() if file == "-" else file,
                workspace_id=options.workspace_id,
                project_id=options.project_id,
                folder=options.folder,
                content_type=options.content_type,
                file_name=options.file_name,
                on_progress=_ProgressReport(report, file),
                timeout=options.timeout,
            )
            show(output.to_dict(asset))


class _ProgressReport:
    """Reports the progress of an upload in steps."""

    def __init__(self, report: output.ReportProgress, label: str) -> None:
        self._report = report
        self._label = label
        self._shown = -1

    def __call__(self, sent: int, total: int) -> None:
        step = 100 * sent // total // REPORT_STEP
        if step != self._shown:
            self._shown = step
            self._report(self._label, "uploaded", step * REPORT_STEP)
