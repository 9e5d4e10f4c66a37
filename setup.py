"""What the package index shows: README.md without links and pictures of the repository.

Everything else about the package is in pyproject.toml. The index has no repository next to it, so a
relative link would lead nowhere. Once `[project.urls]` has a `Source`, they can be made absolute.
"""

import re
from pathlib import Path

from setuptools import setup

_REPOSITORY_ONLY = re.compile(r"<!-- repository -->\n.*?<!-- end -->\n", re.DOTALL)
_PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)[^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)")


def description(readme: str) -> str:
    """Returns a text that reads well without the repository: pictures become their captions."""
    text = _REPOSITORY_ONLY.sub("", readme)
    return _LINK.sub(r"\1", _PICTURE.sub(r"*\1.*", text))


setup(
    long_description=description(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
