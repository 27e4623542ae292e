"""Generate what a CSV asks for (type, prompt, model, params): ``python batch_csv.py orders.csv done.csv media``."""

import asyncio
import csv
import sys
from pathlib import Path

import msgspec

from flora_async import DownloadError, Flora, Order


class Row(Order, frozen=True, kw_only=True, forbid_unknown_fields=True):
    line: int


def read(path: Path) -> list[Row]:
    """Read the rows of a file, or tell what is wrong with any."""
    rows, faults = list[Row](), list[str]()
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, restkey="(one too many)")
        for cells in table:
            asked = {name: cell for name, cell in cells.items() if cell}
            asked |= {"line": table.line_num, "workspace_id": "ws_demo", "project_id": "prj_demo"}
            try:
                params = msgspec.json.decode(cells.get("params") or "null")
                rows.append(msgspec.convert({**asked, "params": params}, Row))
            except msgspec.MsgspecError as fault:
                faults.append(f"{path}, line {table.line_num}: {fault}")
    if faults:
        raise ValueError("\n".join(faults))
    return rows


async def main(orders: str, done: str, folder: str) -> int:
    """Order everything, keep what comes, and write down each row as it finishes."""
    rows, failed = read(Path(orders)), 0
    async with Flora() as flora:
        with Path(done).open("x", newline="", encoding="utf-8", buffering=1) as file:
            print("line,run_id,error,files", file=file)
            async for outcome in flora.generate_many(rows):
                told: list[object] = [outcome.order.line, outcome.run_id]
                try:
                    told += ["", *await flora.download(outcome.run, folder)] if outcome.run else [outcome.error]
                except DownloadError as error:
                    told.append(error)
                failed += bool(told[2])
                csv.writer(file).writerow(told)
    return 1 if failed else 0


if __name__ == "__main__":
    try:  # 0: all rows have completed; 1: some have not; 2: nothing was ordered, since a row cannot be right
        sys.exit(asyncio.run(main(*sys.argv[1:])))
    except (ValueError, OSError) as fault:
        print(fault, file=sys.stderr)
        sys.exit(2)
