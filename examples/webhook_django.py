"""A Django service that FLORA calls back: ``POST /images?prompt=a+mug`` gives the picture's URL.

``uvicorn --lifespan on webhook_django:application`` needs FLORA_API_KEY, FLORA_WEBHOOK_SECRET and its own PUBLIC_URL.
"""

import os
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from flora_async import ConfigurationError, Flora, FloraError, Order, Run, WebhookVerificationError

CALLBACK_URL = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000") + "/flora"

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])
django = get_asgi_application()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Keep one client for the service's event loop, which Django by itself does not, and close it when that ends."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    await receive()
    async with Flora() as flora:
        scope["state"].update(flora=flora, inbox=flora.inbox())
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


@csrf_exempt
async def draw(request: ASGIRequest) -> HttpResponse:
    """Order an image, and answer when FLORA has said that it is done."""
    prompt = request.GET.get("prompt", "")
    order = Order(type="image", prompt=prompt, workspace_id="ws_demo", project_id="prj_demo", callback_url=CALLBACK_URL)
    try:
        run: Run = await request.scope["state"]["flora"].generate(order)
    except FloraError as error:
        return HttpResponse(str(error), status=400 if isinstance(error, ConfigurationError) else 502)
    return JsonResponse({"run_id": run.run_id, "url": run.outputs[0].url})


@csrf_exempt
async def call_back(request: ASGIRequest) -> HttpResponse:
    """Take what FLORA says of a run; whoever waits for it goes on."""
    try:
        request.scope["state"]["inbox"].receive(request.body, request.headers)
    except WebhookVerificationError as error:
        return HttpResponse(str(error), status=400)
    return HttpResponse(status=204)


urlpatterns = [path("images", draw), path("flora", call_back)]
