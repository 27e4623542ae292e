"""MATRIX.md lists every case, and every case has its test."""

import re
from pathlib import Path

import test_sequences
from test_single_response import FAULTS

HERE = Path(__file__).parent
ROW = re.compile(r"^\| ([0-9]+) \| .* \| ([TF]) \|$", re.MULTILINE)


def test_the_list_is_whole() -> None:
    """105 cases, each once, each shown."""
    listed = {int(number): shown for number, shown in ROW.findall((HERE / "MATRIX.md").read_text(encoding="utf-8"))}
    assert list(listed) == list(range(1, 106))
    on_the_wire = {fault.number for fault in FAULTS}
    text = Path(test_sequences.__file__).read_text(encoding="utf-8")
    named = {int(number) for number in re.findall(r"(?<=_)[0-9]{3}(?=_)|(?<=id=\")[0-9]{3}", text)}
    assert {number for number, shown in listed.items() if shown == "T"} <= on_the_wire
    assert {number for number, shown in listed.items() if shown == "F"} <= named
