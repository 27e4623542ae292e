"""Make a video of a picture in a file: ``python photo_to_video.py photo.png "the camera moves in" out``."""

import asyncio
import sys
from pathlib import Path

from flora_async import Flora, FloraError


async def main(photo: str, prompt: str, folder: str) -> None:
    """Upload the picture, order the video, wait for it and save it."""
    async with Flora() as flora:
        run = await flora.generate(
            type="video",
            prompt=prompt,
            workspace_id="ws_demo",
            project_id="prj_demo",
            params={"image_url": Path(photo)},
        )
        for path in await flora.download(run, folder):
            print(path)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except FloraError as error:
        sys.exit(str(error))
