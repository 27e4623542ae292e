"""Make a poster of each photo, with a caption: ``python posters.py photo.png ... posters``."""

import asyncio
import sys
from pathlib import Path

from flora_async import Flora, TechniqueOrder


async def main(photos: list[str], folder: str) -> int:
    """Run the technique for all photos at once, and save what it makes."""
    orders = [
        TechniqueOrder(
            technique_id="tech_poster",
            inputs={"subject": Path(photo).stem, "photo": Path(photo)},
            workspace_id="ws_demo",
        )
        for photo in photos
    ]
    failed = 0
    async with Flora() as flora:
        async for outcome in flora.generate_many(orders, max_cost=5.00):
            if outcome.run is None:
                failed += 1
                print(f"{outcome.order.inputs['subject']}: {outcome.error}")
            else:
                for path in await flora.download(outcome.run, folder):
                    print(path)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:-1], sys.argv[-1])))
