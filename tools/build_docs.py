"""Build the documentation site into _docs: python tools/build_docs.py [yml]

With "yml" only nbs/sidebar.yml and nbs/nbdev.yml are brought up to date.
nbdev turns the notebooks into pages (signatures, tables, links), smalldocs renders them, and a checker follows every link and anchor.
Addresses that existed once keep working: tools/moved_pages.csv says where each page is now.
Anything wrong is listed and ends the build with exit code 1. The project is the same that Quarto would render: nbs/_quarto.yml.
"""

import csv
import functools
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PROC = ROOT / "_proc"
SRC = ROOT / "_site_src"
OUT = ROOT / "_docs"
MOVED = ROOT / "tools" / "moved_pages.csv"

# Sections of the sidebar in the order of reading; a folder that is not listed comes last, under its own name.
SECTIONS = {
    "": "Run it",
    "tutorials": "Tutorials",
    "foundations": "Foundations",
    "training": "Training",
    "distillers": "Distillers",
    "attacks": "Attacks",
    "frequency": "Frequency",
    "mixing": "Mixing",
    "foreign": "Bring your own",
    "results": "Results",
    "grid": "Grids",
    "explore": "Explore",
    "analysis": "Analysis",
    "speed": "Speed",
    "fast": "Under the hood",
}


# ---------------------------------------------------------------- the sidebar


def sidebar():
    "The contents of nbs/sidebar.yml: the front page, then a section for each folder"
    folders = {}
    for path in sorted(NBS.rglob("*.ipynb")):
        name = path.relative_to(NBS).as_posix()
        if name == "index.ipynb" or any(part[0] in "._" for part in Path(name).parts):
            continue
        folders.setdefault(posixpath.dirname(name), []).append(name)
    order = list(SECTIONS) + sorted(set(folders) - set(SECTIONS))
    sections = [
        {"section": SECTIONS.get(f, f.replace("_", " ").capitalize()), "contents": folders[f]}
        for f in order
        if f in folders
    ]
    return {"website": {"sidebar": {"contents": ["index.ipynb", *sections]}}}


def write_yml():
    "nbs/nbdev.yml from the settings, nbs/sidebar.yml from the folders"
    from nbdev.quarto import refresh_quarto_yml

    refresh_quarto_yml()
    text = "# Written by tools/build_docs.py\n" + yaml.safe_dump(sidebar(), sort_keys=False)
    path = NBS / "sidebar.yml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- from nbdev's pages to smalldocs' pages


def page_name(name, cells):
    "foundations/10_core.ipynb -> foundations/core.ipynb, as nbdev's own links have it"
    front = "".join(cells[0]["source"]) if cells and cells[0]["cell_type"] == "raw" else ""
    found = re.search(r"^output-file:\s*(\S+)\.html\s*$", front, flags=re.M)
    if found:
        cells[0]["source"] = front.replace(found[0] + "\n", "").replace(found[0], "")
        return posixpath.join(posixpath.dirname(name), found[1] + ".ipynb")
    return name


def mended_link(target, page, names, site, blob):
    "A link target as the page at its new place needs it: within the site relative, to other files of the repository absolute"
    if target.startswith(site):
        inner = target[len(site) :].lstrip("/") or "index.html"
        return posixpath.relpath(inner, posixpath.dirname(page) or ".")
    if re.match(r"[a-z][a-z0-9+.-]*:|#|/|\{", target, flags=re.I):
        return target
    path, mark, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(path)))
    if place in names:
        return posixpath.relpath(names[place], posixpath.dirname(page) or ".") + mark + anchor
    if place.startswith("../") and (ROOT / place[3:]).exists():
        return f"{blob}/{place[3:]}{mark}{anchor}"
    return target


def mend_text(text, mend):
    "Every link of a markdown text, except in fenced code"
    parts = re.split(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", text, flags=re.M | re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(\]\()([^)\s]+)", lambda m: m[1] + mend(m[2]), parts[i])
        parts[i] = re.sub(r"((?:href|src)=\")([^\"]+)", lambda m: m[1] + mend(m[2]), parts[i])
    return "".join(parts)


def joined(text):
    return "".join(text) if isinstance(text, list) else text


def mend_cell(cell, mend):
    "Every link in the text and in the markdown outputs of a cell"
    if cell["cell_type"] == "markdown":
        cell["source"] = mend_text(joined(cell["source"]), mend)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/markdown" in data:
            data["text/markdown"] = mend_text(joined(data["text/markdown"]), mend)


def read_pages():
    "The processed notebooks by path, and the name that each page gets"
    books = {}
    names = {}
    for path in sorted(SRC.rglob("*.ipynb")):
        name = path.relative_to(SRC).as_posix()
        book = json.loads(path.read_text(encoding="utf-8"))
        books[name] = book
        names[name] = page_name(name, book["cells"])
    twice = [n for n in names.values() if list(names.values()).count(n) > 1]
    if twice:
        sys.exit(f"two notebooks want the same page name: {sorted(set(twice))}")
    return books, names


def renamed(item, names):
    "An entry of the sidebar with the final page names"
    if isinstance(item, str):
        return names.get(item, item)
    return {**item, "contents": [renamed(inner, names) for inner in item["contents"]]}


def mend_pages(config):
    "Copy _proc to _site_src with the final page names, and make every link agree with them"
    shutil.rmtree(SRC, ignore_errors=True)
    shutil.copytree(PROC, SRC)
    books, names = read_pages()
    for name, book in books.items():
        mend = functools.partial(
            mended_link, page=name, names=names, site=config["site"], blob=config["blob"]
        )
        for cell in book["cells"]:
            mend_cell(cell, mend)
        (SRC / name).unlink()
        (SRC / names[name]).write_text(json.dumps(book), encoding="utf-8")
    yml = yaml.safe_load((SRC / "sidebar.yml").read_text(encoding="utf-8"))
    bar = yml["website"]["sidebar"]
    bar["contents"] = [renamed(item, names) for item in bar["contents"]]
    (SRC / "sidebar.yml").write_text(yaml.safe_dump(yml, sort_keys=False), encoding="utf-8")


# ---------------------------------------------------------------- addresses that existed once

REDIRECT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>This page has moved</title>
<link rel="canonical" href="{site}/{new}">
<meta http-equiv="refresh" content="0; url={link}">
</head>
<body><p>This page has moved to <a href="{link}">{new}</a>.</p></body>
</html>
"""


def moved_pages(path=MOVED):
    "Old address -> new address, for every page that the site ever had"
    with open(path, encoding="utf-8", newline="") as file:
        return {line["old"]: line["new"] for line in csv.DictReader(file)}


def write_redirects(out, moved, site):
    "A small page at every old address; returns a line for each address that leads nowhere"
    found = []
    for old, new in moved.items():
        if not (out / new).is_file():
            found.append(f"{old}: moved to {new}, which is no page (see {MOVED.name})")
        elif old != new and (out / old).exists():
            found.append(f"{old}: moved to {new}, but there is a page at the old address (see {MOVED.name})")
        elif old != new:
            link = posixpath.relpath(new, posixpath.dirname(old) or ".")
            (out / old).parent.mkdir(parents=True, exist_ok=True)
            (out / old).write_text(REDIRECT.format(site=site, new=new, link=link), encoding="utf-8")
    return found


# ---------------------------------------------------------------- the checks


def lost_text():
    "nbdev keeps only title, subtitle and `- key: value` lines of the cell that holds the title: one line for each cell with more"
    found = []
    for path in sorted(NBS.rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = [joined(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        title = next((t for t in texts if re.search(r"^# ", t, flags=re.M)), "")
        more = [
            line for line in title.splitlines() if line.strip() and not re.match(r"# |> |- [\w-]+:", line)
        ]
        if more:
            found.append(
                f"{path.relative_to(ROOT)}: the cell of the title holds more, which the page would lose; give it its own cell: {more[0]}"
            )
    return found


class Page(HTMLParser):
    "The links of a page, and the places in it that a link can name"

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.update(filter(None, (attrs.get("id"), attrs.get("name") if tag == "a" else None)))
        self.links += filter(
            None,
            (
                attrs.get("href") if tag != "link" or attrs.get("rel") == "stylesheet" else None,
                attrs.get("src"),
            ),
        )


def read_html(out):
    "The links and anchors of every page of a site, by address"
    return {
        path.relative_to(out).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(out.rglob("*.html"))
    }


def in_repository(link, blob):
    "Whether a link to a file of the repository leads to one"
    path = unquote(urlsplit(link).path)[len(urlsplit(blob).path) + 1 :]
    return (ROOT / path).exists()


def fault_of_link(link, name, out, pages, config):
    "None for a link to another site, else what is wrong with it, empty when nothing is"
    if link.startswith(config["blob"] + "/"):
        return "" if in_repository(link, config["blob"]) else "no such file in the repository"
    target = link
    folder = posixpath.dirname(name)
    if link.startswith(config["site"]):
        target = link[len(config["site"]) :].lstrip("/")
        folder = ""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    path = posixpath.normpath(posixpath.join(folder, unquote(parts.path))) if parts.path else name
    if (out / path).is_dir():
        path = posixpath.normpath(posixpath.join(path, "index.html"))
    if path.startswith("../") or not (out / path).is_file():
        return "no such page"
    if path in pages and unquote(parts.fragment) not in pages[path].ids:
        return "no such anchor"
    return ""


def broken_links(out, config):
    "One line for each link of the site in folder `out` that leads nowhere, and how many were followed"
    pages = read_html(out)
    found = []
    followed = 0
    for name, page in pages.items():
        for link in sorted(set(page.links)):
            fault = fault_of_link(link, name=name, out=out, pages=pages, config=config)
            if fault is None:
                continue
            followed += 1
            if fault:
                found.append(f"{name}: {link} ({fault})")
    return found, followed


def class_of_method(match, name, ids):
    "A link to `Class.method` as it should be: to the class where the method has no heading"
    page = name
    if match[2]:
        page = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2]))
    known = ids.get(page, ())
    owner = match[3].partition(".")[0]
    if known and match[3] not in known and owner in known:
        return f'{match[1]}{match[2]}#{owner}"'
    return match[0]


def point_at_classes(out):
    "A link to a method without a heading of its own goes to its class"
    ids = {name: page.ids for name, page in read_html(out).items()}
    for name in ids:
        retarget = functools.partial(class_of_method, name=name, ids=ids)
        text = (out / name).read_text(encoding="utf-8")
        new = re.sub(r'(href=")([^"#:]*)#([\w-]+\.[\w.]+)"', retarget, text)
        if new != text:
            (out / name).write_text(new, encoding="utf-8")


# ---------------------------------------------------------------- the build


def project():
    "What the settings say about addresses"
    from nbdev.config import get_config

    cfg = get_config()
    return {
        "site": f"{cfg.doc_host}{cfg.doc_baseurl}".rstrip("/"),
        "blob": f"{cfg.git_url}/blob/{cfg.branch}",
    }


def processed():
    "nbdev's part: index, yml files and processed notebooks in _proc, without touching Quarto"
    from nbdev.doclinks import _build_modidx
    from nbdev.serve import proc_nbs

    write_yml()
    _build_modidx()
    proc_nbs(n_workers=2, force=True)


def main():
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("DDROBUST_QUIET", "1")
    if sys.argv[1:] == ["yml"]:
        return write_yml()
    config = project()
    faults = lost_text()
    processed()
    mend_pages(config)
    render = subprocess.run(
        [sys.executable, "-m", "smalldocs.cli", "render", "--strict", "--quiet", str(SRC)]
    )
    out = SRC / OUT.name
    if not out.is_dir():
        sys.exit("the site was not rendered")
    point_at_classes(out)
    faults += write_redirects(out, moved=moved_pages(), site=config["site"])
    broken, followed = broken_links(out, config)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(out, OUT)
    shutil.rmtree(SRC)
    for line in faults:
        print(line)
    for line in broken:
        print(f"broken link in {line}")
    pages = len(list(OUT.rglob("*.html")))
    warnings = ", warnings above" if render.returncode else ""
    print(f"{pages} pages in {OUT.name}, {followed} links followed, {len(broken)} broken{warnings}")
    sys.exit(1 if faults or broken or render.returncode else 0)


if __name__ == "__main__":
    main()
