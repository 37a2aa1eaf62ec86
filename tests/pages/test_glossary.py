"The glossary: every link to it finds its entry, and a page links an entry once, where the word comes first."

import json
import posixpath
import re
from collections import Counter
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[2] / "nbs"
GLOSSARY = NBS / "glossary.ipynb"
PAGES = [path for path in sorted(NBS.rglob("*.ipynb")) if "sets" not in path.relative_to(NBS).parts]


def markdown(path):
    "The markdown of a page"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors():
    "The entries of the glossary, in their order"
    return re.findall(r'<a id="([\w-]+)"></a>', markdown(GLOSSARY))


def links(path):
    "The entries that a page links to"
    text = markdown(path)
    here = posixpath.relpath(GLOSSARY.as_posix(), path.parent.as_posix())
    return re.findall(rf"\]\({re.escape(here)}#([\w-]+)\)", text)


def test_entries_are_unique():
    "An anchor leads to one place"
    assert max(Counter(anchors()).values()) == 1


def test_entries_refer_to_entries():
    "A link within the glossary finds its entry"
    inside = re.findall(r"\]\(#([\w-]+)\)", markdown(GLOSSARY))
    assert inside and set(inside) <= set(anchors())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(NBS).as_posix())
def test_links_to_the_glossary(path):
    "They find their entry, and none is repeated"
    found = Counter(links(path))
    assert set(found) <= set(anchors())
    assert not [entry for entry, times in found.items() if times > 1]
