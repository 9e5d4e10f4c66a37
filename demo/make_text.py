"""Extracts public-domain English texts for the demo from Debian packages.

Four domains: ``austen`` (six novels), ``bible`` (King James), ``jargon`` (the Jargon File) and
``devil`` (The Devil's Dictionary). Every text is converted to plain ASCII with one paragraph per
line and an empty line between paragraphs, so a byte-level model does not learn line breaks.
"""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import unicodedata
import zlib
from pathlib import Path

PACKAGES = ("r-cran-janeaustenr", "bible-kjv", "bible-kjv-text", "dict-jargon", "dict-devil")
HELD_OUT_BYTES = 24576
# The first words of each domain's held-out part: Persuasion's last chapters, the book of Ruth and
# what follows, the letter M, the letter L.
HELD_OUT_START = {
    "austen": "They were on Union Street,",
    "bible": "Ruth 1\n",
    "jargon": "macro /",
    "devil": "LAUGHTER, n.",
}
# Entries of Bierce that contain slurs are left out.
_LEFT_OUT = re.compile(r"\bnigger|\bnegro|\bmulatto", re.IGNORECASE)

_ASCII = {
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--",
    "\u2026": "...", "\u2122": "(TM)", "\u00d7": "x", "\u00a3": "L", "\u00c6": "AE", "\u00e6": "ae",
}  # fmt: skip


def split_texts(work: Path) -> dict[str, tuple[bytes, bytes]]:
    """Returns ``{domain: (training bytes, held-out bytes)}``; unpacks packages in ``work``."""
    root = _unpack(work)
    texts = {
        "austen": austen(root),
        "bible": bible(root),
        "jargon": jargon(root),
        "devil": devil(root),
    }
    return {name: _split(name, to_ascii(text)) for name, text in texts.items()}


def austen(root: Path) -> str:
    """Returns six novels, from R's lazy-load file: zlib blocks, each a serialized vector."""
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    novels, position = [], 0
    while position < len(data):
        block = zlib.decompressobj()
        raw = block.decompress(data[position + 4 :])  # 4 bytes: the unpacked length
        position = len(data) - len(block.unused_data)
        novels.append(_paragraphs(_r_lines(raw)).partition("\n\nA NOTE ON THE TEXT")[0])
    # Move Persuasion (the fourth) to the end: its last part is held out.
    novels.append(novels.pop(3))
    return "\n\n".join(novels)


def bible(root: Path) -> str:
    """Returns the whole King James Version, with a line per verse and a heading per chapter."""
    lib = root / "usr/lib"
    command = [str(root / "usr/bin/bible"), "-l", "100000", "Gen1:1-Rev22:21"]
    result = subprocess.run(
        command, cwd=lib, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    lines = [line.strip() for line in result.stdout.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def jargon(root: Path) -> str:
    """Returns entries as a head line (word and kind) followed by their paragraphs."""
    text = gzip.decompress((root / "usr/share/dictd/jargon.dict.dz").read_bytes()).decode()
    text = text[text.index("(TM)\n //") : text.rindex("\n\n")]
    entries = re.split(r"\n(?=\S)", text)
    return "\n\n".join(_entry(entry) for entry in entries if entry.strip())


def devil(root: Path) -> str:
    """Returns definitions as paragraphs; verse, which is indented, keeps its line breaks."""
    text = gzip.decompress((root / "usr/share/dictd/devil.dict.dz").read_bytes()).decode()
    text = text[text.index("ABASEMENT, n.") : text.rindex("\n")]
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        is_verse = all(line.startswith("    ") for line in lines) and len(lines) > 1
        joint = "\n" if is_verse else " "
        blocks.append(joint.join(re.sub(r"\s+", " ", line.strip()) for line in lines))
    return "\n\n".join(block for block in blocks if block and not _LEFT_OUT.search(block))


def to_ascii(text: str) -> bytes:
    """Returns text with typographic signs spelled in ASCII and accents removed."""
    for sign, plain in _ASCII.items():
        text = text.replace(sign, plain)
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore")


def _split(name: str, text: bytes) -> tuple[bytes, bytes]:
    phrase = HELD_OUT_START[name]
    start = text.index(b"\n\n" + phrase.encode()) + 2
    end = start + HELD_OUT_BYTES
    if end > len(text):
        raise SystemExit(f"{name}: only {len(text) - start} bytes after {phrase!r}")
    return text[:start] + text[end:], text[start:end]


def _unpack(work: Path) -> Path:
    root = work / "root"
    if not (root / "done").exists():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=work, check=True)
        for package in sorted(work.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
        (root / "done").touch()
    return root


def _r_lines(raw: bytes) -> list[str]:
    """Returns the lines of a character vector in R's XDR serialization, version 3."""
    position = raw.index(b"UTF-8") + 5
    _, count = struct.unpack_from(">II", raw, position)
    position += 8
    lines = []
    for _ in range(count):
        _, size = struct.unpack_from(">Ii", raw, position)
        lines.append(raw[position + 8 : position + 8 + size].decode())
        position += 8 + size
    return lines


def _paragraphs(lines: list[str]) -> str:
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    return "\n\n".join(" ".join(block.split()) for block in blocks if block.strip())


def _entry(entry: str) -> str:
    head, _, body = entry.partition("\n\n")
    body = re.sub(r"\{\s+", "{", _paragraphs(body.splitlines()))
    return f"{' '.join(head.split())}\n\n{body}".strip()
