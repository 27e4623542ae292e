"""What the README and the guide show, taken out of them to be run: whole programs, and commands of the terminal."""

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flora_async import Flora
from flora_async.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts))

AT_ONCE = 6
"""Commands that run at the same time: they mostly sleep between polls, or start up."""
ELSEWHERE = {"sandbox", "demo", "--open"}
"""What serves until it is interrupted, takes long, or opens a browser, is tested where it is at home."""

_SLOW = re.compile(r"^Executing .* took [0-9.]+ seconds\n", re.MULTILINE)


def complaints_of(said: bytes | str) -> str:
    """Give what a program says on stderr, without what asyncio says of a busy machine, as it debugs."""
    return _SLOW.sub("", said if isinstance(said, str) else said.decode())


@dataclass(frozen=True)
class Example:
    """A block of a page."""

    name: str
    """Page and line."""
    language: str
    text: str


@dataclass(frozen=True)
class Ending:
    """How it ended."""

    code: int | None
    output: str
    complaints: str


def examples(page: Path) -> list[Example]:
    """Read the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Example(f"{page.stem}:{text.count(chr(10), 0, block.start())}", block[2], textwrap.dedent(block[3]))
        for block in re.finditer(r"^([ \t]*)```(\w+)\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE)
    ]


def programs(page: Path) -> list[Example]:
    """Give the programs of a page."""
    return [example for example in examples(page) if example.language == "python"]


def commands(page: Path) -> list[Example]:
    """Give the blocks of a page that are commands of ours and nothing else."""
    return [example for example in examples(page) if example.language == "sh" and _is_ours(example.text)]


def _is_ours(block: str) -> bool:
    lines = [line.split() for line in block.replace("\\\n", "").splitlines() if line.strip()]
    return all(words[0] == "flora-async" and ELSEWHERE.isdisjoint(words) for words in lines)


def run_all(wanted: Iterable[Example], folder: Path) -> dict[str, Ending]:
    """Run examples side by side against one sandbox, each in an empty folder of its own."""
    return asyncio.run(_run_all(list(wanted), folder))


async def _run_all(wanted: list[Example], folder: Path) -> dict[str, Ending]:
    async with Sandbox(time_scale=0.01) as sandbox:
        async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
            started = await flora.generations.create(
                type="image", prompt="a mug", workspace_id="ws_demo", project_id="prj_demo"
            )
        settings = {
            "FLORA_API_KEY": sandbox.api_key,
            "FLORA_BASE_URL": sandbox.base_url,
            "FLORA_WEBHOOK_SECRET": sandbox.webhook_secret,
            "RUN": started.run_id,
        }
        homes = {example: folder / f"{number}" for number, example in enumerate(wanted)}
        for home in homes.values():
            home.mkdir()
        places = asyncio.Semaphore(AT_ONCE)
        programs = {example: home for example, home in homes.items() if example.language == "python"}
        commands = [
            _run_command(example, homes[example], settings, places) for example in wanted if example not in programs
        ]
        endings = await asyncio.gather(_run_programs(programs, settings), *commands)
    return {name: ending for some in endings for name, ending in some.items()}


async def _run_programs(programs: dict[Example, Path], settings: dict[str, str]) -> dict[str, Ending]:
    """Run all programs at once, in forks of one process: see forking.py."""
    lines = []
    for number, (example, home) in enumerate(programs.items()):
        (home / "program.py").write_text(example.text, encoding="utf-8")
        lines.append(json.dumps([number, str(home), {**settings, "PATH": ""}]))
    command = [sys.executable, "-W", "error", "-X", "dev", str(Path(__file__).with_name("forking.py"))]
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    output, _ = await process.communicate("".join(f"{line}\n" for line in lines).encode())
    assert process.returncode == 0
    codes = {int(number): int(code) for number, code in map(bytes.split, output.splitlines())}
    return {
        example.name: Ending(
            codes[number],
            Path(f"{home}.out").read_text(encoding="utf-8"),
            complaints_of(Path(f"{home}.err").read_text(encoding="utf-8")),
        )
        for number, (example, home) in enumerate(programs.items())
    }


async def _run_command(
    example: Example, home: Path, settings: dict[str, str], places: asyncio.Semaphore
) -> dict[str, Ending]:
    command = ["/bin/sh", "-e", "-c", example.text]
    settings = {**settings, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    pipe = subprocess.PIPE
    async with places:
        process = await asyncio.create_subprocess_exec(*command, cwd=home, env=settings, stdout=pipe, stderr=pipe)
        output, complaints = await process.communicate()
    return {example.name: Ending(process.returncode, output.decode(), complaints_of(complaints))}
