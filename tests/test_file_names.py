"""Names, extensions and content encodings of saved outputs."""

import pytest

from flora_async import Output
from flora_async._file_names import content_coding, extension_of, file_stems

PICTURE = "https://media.flora.ai/a.png"


def output(output_id: str, url: str = PICTURE, kind: str = "imageUrl") -> Output:
    """Build an output."""
    return Output(output_id=output_id, type=kind, url=url)


@pytest.mark.parametrize(
    ("content_type", "extension"),
    [
        ("image/jpg", "jpg"),
        ("IMAGE/PJPEG; q=1", "jpg"),
        ("image/heic", "heic"),
        ("image/tiff", "tiff"),
        ("image/svg+xml;charset=utf-8", "svg"),
        ("audio/mp3", "mp3"),
        ("audio/x-m4a", "m4a"),
        ("audio/x-flac", "flac"),
        ("audio/wave", "wav"),
        ("video/x-m4v", "m4v"),
        ("video/mp4, video/mp4", "mp4"),
    ],
)
def test_the_usual_content_types_have_their_extension(content_type: str, extension: str) -> None:
    """A content type, registered or only usual, decides even where the URL has another extension."""
    assert extension_of(content_type, "https://media.flora.ai/a.gif") == extension


@pytest.mark.parametrize("content_type", ["", "binary/octet-stream", "application/octet-stream", "image/x-new", "odd"])
@pytest.mark.parametrize(
    ("urls", "extension"),
    [
        ([PICTURE], "png"),
        (["https://host/A.JPEG?sig=a.mp4#b.gif"], "jpeg"),
        (["https://host/signed?key=1", "https://host/a.webp"], "webp"),
        (["https://host/a.tar.gz"], "bin"),
        (["https://host/evil.sh"], "bin"),
        (["https://host/evil.html"], "bin"),
        (["https://host/.png/a"], "bin"),
        (["https://host.png"], "bin"),
        (["https://host/png"], "bin"),
        ([], "bin"),
    ],
)
def test_an_unknown_content_type_leaves_it_to_the_url(content_type: str, urls: list[str], extension: str) -> None:
    """The first URL with a known extension decides; the last resort is ``bin``."""
    assert extension_of(content_type, *urls) == extension


def test_plain_ids_are_the_name() -> None:
    """Ids of the usual alphabet make a name without a digest."""
    assert file_stems("run_abc-123.x", [output("output_1"), output("b.png")]) == [
        "run_abc-123.x_output_1",
        "run_abc-123.x_b.png",
    ]


ODD_IDS = [
    "a/b",
    "a:b",
    "a b",
    "a_b",
    "A_B",
    "a_b",
    "",
    "",
    ".",
    "..",
    "-x",
    "\ud800",
    "é",
    "e\u0301",
    "x" * 200,
    "x" * 201,
]


@pytest.mark.parametrize("run_id", ["run_1", None])
def test_odd_ids_have_distinct_safe_names(run_id: str | None) -> None:
    """Ids that are equal, unsafe, too long, empty, or fall together without case, have names that do not."""
    outputs = [output(output_id, f"https://host/{number}") for number, output_id in enumerate(ODD_IDS)]
    stems = file_stems(run_id, outputs)
    if run_id is None:
        stems = [file_stems(None, [one])[0] for one in outputs]
    assert len({stem.casefold() for stem in stems}) == len(ODD_IDS)
    assert stems == (file_stems(run_id, outputs) if run_id else [file_stems(None, [one])[0] for one in outputs])
    for stem in stems:
        assert 0 < len(stem) <= 120
        assert stem.isascii()
        assert not set(stem) & set('/\\:*?"<>| \0')
        assert stem[0] not in ".-"


def test_other_runs_have_other_names() -> None:
    """Outputs of one id have different names in different runs, where the ids join to the same text, and alone."""
    assert file_stems("run_a", [output("b_c")]) != file_stems("run_a_b", [output("c")])
    signed, fresh, other = (output("output_1", f"https://host/{path}") for path in ("1?s=1", "1?s=2", "2?s=1"))
    assert file_stems(None, [signed]) == file_stems(None, [fresh]) != file_stems(None, [other])
    poems = [output("output_1", text, "text") for text in ("a rose?", "a rose? yes", "a lily")]
    assert len({file_stems(None, [poem])[0] for poem in poems}) == 3


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", ""),
        ("identity", ""),
        ("Identity", ""),
        (" , ", ""),
        ("aws-chunked", ""),
        ("AWS-Chunked, identity", ""),
        ("gzip", "gzip"),
        ("X-GZIP", "gzip"),
        ("aws-chunked,gzip", "gzip"),
        ("br", "br"),
        ("gzip, gzip", "gzip, gzip"),
        ("gzip, br", "gzip, br"),
    ],
)
def test_content_encodings(header: str, coding: str) -> None:
    """Only what changes the bytes is an encoding."""
    assert content_coding(header) == coding
