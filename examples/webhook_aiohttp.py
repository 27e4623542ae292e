"""An aiohttp.web service that FLORA calls back: ``POST /images?prompt=a+mug`` gives the picture's URL.

FLORA_API_KEY, FLORA_WEBHOOK_SECRET and PUBLIC_URL, where FLORA reaches this service, come from the environment.
"""

import os
from collections.abc import AsyncIterator

from aiohttp import web

from flora_async import ConfigurationError, Flora, FloraError, Inbox, WebhookVerificationError

PORT = int(os.environ.get("PORT", "8080"))
PUBLIC_URL = os.environ.get("PUBLIC_URL", f"http://127.0.0.1:{PORT}")
FLORA = web.AppKey("flora", Flora)
INBOX = web.AppKey("inbox", Inbox)


async def client(app: web.Application) -> AsyncIterator[None]:
    """Keep one client for the service's event loop, and close it when the service ends."""
    async with Flora() as flora:
        app[FLORA] = flora
        app[INBOX] = flora.inbox()
        yield


async def draw(request: web.Request) -> web.Response:
    """Order an image, and answer when FLORA has said that it is done."""
    try:
        run = await request.app[FLORA].generate(
            type="image",
            prompt=request.query.get("prompt", ""),
            workspace_id="ws_demo",
            project_id="prj_demo",
            callback_url=f"{PUBLIC_URL}/flora",
        )
    except FloraError as error:
        return web.Response(status=400 if isinstance(error, ConfigurationError) else 502, text=str(error))
    return web.json_response({"run_id": run.run_id, "url": run.outputs[0].url})


async def call_back(request: web.Request) -> web.Response:
    """Take what FLORA says of a run; whoever waits for it goes on."""
    try:
        request.app[INBOX].receive(await request.read(), request.headers)
    except WebhookVerificationError as error:
        return web.Response(status=400, text=str(error))
    return web.Response(status=204)


app = web.Application()
app.cleanup_ctx.append(client)
app.add_routes([web.post("/images", draw), web.post("/flora", call_back)])

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=PORT)
