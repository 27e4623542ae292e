"""``flora.library`` and ``flora.feedback``: folders of saved items, and messages to FLORA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from flora_async._resources.operations import Operation, Resource
from flora_async.models import Record

FeedbackKind: TypeAlias = Literal["feature_request", "bug", "technique_request", "missing_capability"]
"""Kind of a message to FLORA. Closed: FLORA refuses other values."""


class LibraryFolder(Record, frozen=True, gc=False, kw_only=True):
    """A folder of a workspace's library. OpenAPI: ``POST /workspaces/{id}/library/folders``."""

    folder_id: str
    workspace_id: str
    name: str | None = None
    deleted: bool = False


class LibraryItem(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An item that was saved. OpenAPI: ``POST /workspaces/{id}/library/folders/{id}/items``."""

    saved_node_id: str
    folder_id: str
    workspace_id: str
    asset_id: str | None = None
    url: str | None = None


class FeedbackReceipt(Record, frozen=True, gc=False, kw_only=True):
    """A message that FLORA has received. OpenAPI: ``POST /feedback``."""

    feedback_id: str
    received_at: float | None = None
    """Raw number from FLORA, of unstated unit."""


_FOLDERS = "/workspaces/{workspace_id}/library/folders"
_CREATE = Operation("POST", _FOLDERS, LibraryFolder)
_DELETE = Operation("DELETE", _FOLDERS + "/{folder_id}", LibraryFolder, keyed=False)
_ADD = Operation("POST", _FOLDERS + "/{folder_id}/items", LibraryItem)
_FEEDBACK = Operation("POST", "/feedback", FeedbackReceipt)


class Library(Resource):
    """``flora.library``: folders of a workspace, with saved pictures and texts."""

    async def create_folder(self, *, workspace_id: str, name: str | None = None) -> LibraryFolder:
        """Create a folder. OpenAPI: ``POST /workspaces/{id}/library/folders``."""
        return await self._call(_CREATE, body={"name": name}, workspace_id=workspace_id)

    async def delete_folder(self, *, workspace_id: str, folder_id: str) -> LibraryFolder:
        """Delete a folder; ``deleted`` is true. OpenAPI: ``DELETE /workspaces/{id}/library/folders/{id}``."""
        return await self._call(_DELETE, workspace_id=workspace_id, folder_id=folder_id)

    async def add_item(
        self,
        *,
        workspace_id: str,
        folder_id: str,
        type: Literal["image", "text"] | None = None,
        source: str | None = None,
        text: str | None = None,
        description: str | None = None,
    ) -> LibraryItem:
        """Save a picture by its https URL, *source*, or a *text*. OpenAPI: ``POST .../folders/{id}/items``."""
        body = {"type": type, "source": source, "text": text, "description": description}
        return await self._call(_ADD, body=body, workspace_id=workspace_id, folder_id=folder_id)


class Feedback(Resource):
    """``flora.feedback``: messages to FLORA."""

    async def record(
        self,
        *,
        kind: FeedbackKind,
        summary: str,
        detail: str,
        attempted_tools: Sequence[str] | None = None,
        workspace_id: str | None = None,
        project_id: str | None = None,
        run_id: str | None = None,
    ) -> FeedbackReceipt:
        """Send a message to FLORA. OpenAPI: ``POST /feedback``."""
        body = {"kind": kind, "summary": summary, "detail": detail, "attempted_tools": attempted_tools}
        about = {"workspace_id": workspace_id, "project_id": project_id, "run_id": run_id}
        return await self._call(_FEEDBACK, body={**body, **about})
