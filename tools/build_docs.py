"""Build the documentation site into _docs: python tools/build_docs.py [yml]

With "yml" only nbs/sidebar.yml and nbs/nbdev.yml are brought up to date.
nbdev turns the notebooks into pages (signatures, tables, links), smalldocs renders them, and a checker follows every link and anchor.
Anything wrong is listed and ends the build with exit code 1. The project is the same that Quarto would render: nbs/_quarto.yml.
"""

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
NBS, PROC, SRC, OUT = ROOT / "nbs", ROOT / "_proc", ROOT / "_site_src", ROOT / "_docs"

# Sections of the sidebar in the order of reading; a folder that is not listed comes last, under its own name.
SECTIONS = {
    "": "Run it",
    "tutorials": "Tutorials",
    "foundations": "Foundations",
    "distillers": "Distillers",
    "attacks": "Attacks",
    "frequency": "Frequency",
    "mixing": "Mixing",
    "results": "Results",
    "grid": "Grids",
    "explore": "Explore",
    "analysis": "Analysis",
    "speed": "Speed",
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


def mend_pages(config):
    "Copy _proc to _site_src with the final page names, and make every link agree with them"
    shutil.rmtree(SRC, ignore_errors=True)
    shutil.copytree(PROC, SRC)
    site, blob = config["site"], config["blob"]
    books, names = {}, {}
    for path in sorted(SRC.rglob("*.ipynb")):
        name, book = path.relative_to(SRC).as_posix(), json.loads(path.read_text(encoding="utf-8"))
        books[name], names[name] = book, page_name(name, book["cells"])
    twice = [n for n in names.values() if list(names.values()).count(n) > 1]
    if twice:
        sys.exit(f"two notebooks want the same page name: {sorted(set(twice))}")
    for name, book in books.items():
        mend = lambda target: mended_link(target, name, names, site, blob)
        for cell in book["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = mend_text(joined(cell["source"]), mend)
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "text/markdown" in data:
                    data["text/markdown"] = mend_text(joined(data["text/markdown"]), mend)
        (SRC / name).unlink()
        (SRC / names[name]).write_text(json.dumps(book), encoding="utf-8")
    yml = yaml.safe_load((SRC / "sidebar.yml").read_text(encoding="utf-8"))
    rename = lambda item: (
        names.get(item, item)
        if isinstance(item, str)
        else {**item, "contents": [rename(i) for i in item["contents"]]}
    )
    bar = yml["website"]["sidebar"]
    bar["contents"] = [rename(item) for item in bar["contents"]]
    (SRC / "sidebar.yml").write_text(yaml.safe_dump(yml, sort_keys=False), encoding="utf-8")


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


def broken_links(out, config):
    "One line for each link of the site in folder `out` that leads nowhere, and how many were followed"
    pages = {
        p.relative_to(out).as_posix(): Page(p.read_text(encoding="utf-8"))
        for p in sorted(out.rglob("*.html"))
    }
    found, followed = [], 0
    for name, page in pages.items():
        for link in sorted(set(page.links)):
            target, where = link, posixpath.dirname(name)
            if link.startswith(config["blob"] + "/"):
                followed += 1
                path = unquote(urlsplit(link).path)[len(urlsplit(config["blob"]).path) + 1 :]
                if not (ROOT / path).exists():
                    found.append(f"{name}: {link} (no such file in the repository)")
                continue
            if link.startswith(config["site"]):
                target, where = link[len(config["site"]) :].lstrip("/"), ""
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            path = posixpath.normpath(posixpath.join(where, unquote(parts.path))) if parts.path else name
            if (out / path).is_dir():
                path = posixpath.normpath(posixpath.join(path, "index.html"))
            if path.startswith("../") or not (out / path).is_file():
                found.append(f"{name}: {link} (no such page)")
            elif path in pages and unquote(parts.fragment) not in pages[path].ids:
                found.append(f"{name}: {link} (no such anchor)")
    return found, followed


def point_at_classes(out, config):
    "A link to a method without a heading of its own goes to its class"
    pages = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*.html"))}
    ids = {name: Page(path.read_text(encoding="utf-8")).ids for name, path in pages.items()}
    for name, path in pages.items():

        def retarget(m):
            page = posixpath.normpath(posixpath.join(posixpath.dirname(name), m[2])) if m[2] else name
            known, owner = ids.get(page, ()), m[3].partition(".")[0]
            return f'{m[1]}{m[2]}#{owner}"' if known and m[3] not in known and owner in known else m[0]

        text = path.read_text(encoding="utf-8")
        new = re.sub(r'(href=")([^"#:]*)#([\w-]+\.[\w.]+)"', retarget, text)
        if new != text:
            path.write_text(new, encoding="utf-8")


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
    config, lost = project(), lost_text()
    processed()
    mend_pages(config)
    render = subprocess.run(
        [sys.executable, "-m", "smalldocs.cli", "render", "--strict", "--quiet", str(SRC)]
    )
    out = SRC / OUT.name
    if not out.is_dir():
        sys.exit("the site was not rendered")
    point_at_classes(out, config)
    found, followed = broken_links(out, config)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(out, OUT)
    shutil.rmtree(SRC)
    for line in lost:
        print(line)
    for line in found:
        print(f"broken link in {line}")
    pages = len(list(OUT.rglob("*.html")))
    print(
        f"{pages} pages in {OUT.name}, {followed} links followed, {len(found)} broken"
        + (", warnings above" if render.returncode else "")
    )
    sys.exit(1 if lost or found or render.returncode else 0)


if __name__ == "__main__":
    main()
