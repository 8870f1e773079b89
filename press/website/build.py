"""Builds the site, and checks it.

A page that links to nothing, or asks somebody outside for a picture or a script, is a mistake.
"""

import html
import re
import shutil
import tempfile
import tomllib
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .api import api_notebook
from .cells import tidy
from .pages import ASSETS, GENERATED, Page, read_config, read_pages, read_redirects
from .render import render_pages
from .staging import process_notebooks, source_of

_NO_ASSETS = ("page.html", "body.html", "unbox.lua", "paper.html", "paper.css")  # read by the press, not by pages


class _References(HTMLParser):
    """What a page defines (ids), links to, and loads."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag == "link" and attrs.get("href"):
            self.loads.append(attrs["href"])
        for key in ("src", "poster", "data", "srcset"):
            if tag != "a" and attrs.get(key):
                self.loads.append(attrs[key])


def check(
    out: Path,  # a built site
) -> list[str]:  # what is wrong, one sentence each
    """Links that lead nowhere (page or place on the page) and loads from outside the site."""
    pages = {}
    for path in sorted(Path(out).rglob("*.html")):
        pages[path.resolve()] = parser = _References()
        parser.feed(path.read_text(encoding="utf-8"))
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(Path(out).resolve()).as_posix()
        outside = [target for target in page.loads if re.match(r"(?:https?:)?//", target.strip())]
        wrong += [f"{name} loads {target} from outside the site." for target in outside]
        for target in [*page.links, *page.loads]:
            if fault := _leads_nowhere(target, path, pages):
                wrong.append(f"{name} links to {target}, {fault}.")
    return wrong


def _leads_nowhere(target: str, path: Path, pages: dict[Path, _References]) -> str:
    """What is wrong with a link of the page at `path`; empty if nothing."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return ""
    aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    aim = aim / "index.html" if aim.is_dir() else aim
    if parts.path.startswith("/") or not aim.is_file():
        return "which does not exist"
    if parts.fragment and aim in pages and unquote(parts.fragment) not in pages[aim].ids:
        return "but that page has no such place"
    return ""


def _find_root(root) -> Path:
    """The folder with `_quarto.yml`, here or above."""
    start = Path(root or ".").resolve()
    if root is None:
        for folder in (start, *start.parents):
            if (folder / "_quarto.yml").is_file():
                return folder
    return start


def _repository(root: Path) -> str:
    """The repository's address of `pyproject.toml`, if it has one."""
    path = root / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}) if path.is_file() else {}
    return project.get("urls", {}).get("Repository", "")


def _write_assets(out: Path) -> None:
    import plotly

    target = out / "assets"
    target.mkdir(parents=True, exist_ok=True)
    for path in ASSETS.iterdir():
        if path.name not in _NO_ASSETS:
            shutil.copyfile(path, target / path.name)
    shutil.copyfile(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", target / "plotly.min.js")


# of a notebook's first cell, as it stands in the file
_NO_ADDRESS = '\\"\\"  # the site writes the repository\'s address here'


def _write_notebooks(notebooks: Path, pages: list[Page], config: dict, out: Path) -> None:
    """The notebooks themselves, for whoever wants to download one. Their first cell, which installs the library in
    Colab, learns the repository's address, where it has one."""
    address = config["website"].get("repo-url") or ""
    if re.search(r"[^\w:/.~-]", address):
        raise ValueError(f"_quarto.yml: repo-url {address!r} is no address that pip could install from.")
    for page in pages:
        if page.staged != GENERATED:
            target = out / "notebooks" / page.source
            target.parent.mkdir(parents=True, exist_ok=True)
            text = (notebooks / page.source).read_text(encoding="utf-8")
            known = text.replace(_NO_ADDRESS, _NO_ADDRESS.replace('\\"\\"', f'\\"{address}\\"'))
            target.write_text(known, encoding="utf-8")


def _write_redirects(redirects: dict[str, str], out: Path) -> None:
    """A page at every address that one had before, which sends its readers on."""
    for old, new in redirects.items():
        to = html.escape("../" * old.count("/") + new, quote=True)
        path = out / old
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>This page has moved</title>'
            f'<meta http-equiv="refresh" content="0; url={to}"><link rel="canonical" href="{to}"></head>'
            f'<body><h1>This page has moved</h1><p><a href="{to}">It is here now.</a></p></body></html>\n',
            encoding="utf-8",
        )


def write_files(notebooks: Path, pages: list[Page], config: dict, out: Path) -> None:
    """What pages load and offer: assets, and the notebooks themselves."""
    _write_assets(out)
    _write_notebooks(notebooks, pages, config, out)


def tidied_notebooks(notebooks: Path, pages: list[Page]) -> dict[str, dict]:
    """The notebook of each page, by `Page.source`, with nothing in it that a static page cannot show."""
    urls = {page.source: page.url for page in pages}
    written = [page for page in pages if page.staged != GENERATED]
    with tempfile.TemporaryDirectory(prefix="namemovers-stage-") as stage:
        processed = process_notebooks(notebooks, written, Path(stage))
    if len(written) < len(pages):
        processed["nbs/" + GENERATED] = api_notebook(notebooks, pages)
    documented = _documented(processed, urls)
    return {page.source: tidy(processed[page.source], page, urls, documented) for page in pages}


def configured(root: Path) -> dict:
    """The site's configuration, with the repository's address where it has one."""
    config = read_config(root)
    config["website"].setdefault("repo-url", _repository(root))
    if not config["website"]["repo-url"]:
        del config["website"]["repo-url"]
    return config


def _documented(processed: dict[str, dict], urls: dict[str, str]) -> set[str]:
    """The addresses of all names that pages document."""
    return {
        f"{urls[source]}#{name.lower()}"
        for source, nb in processed.items()
        for cell in nb["cells"]
        for name in re.findall(r"^show_doc\(([\w.]+)", source_of(cell), re.M)
    }


def _put_in_place(site: Path, out: Path) -> None:
    """Move a finished site to where it is to be; the older one is there until then."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        shutil.copytree(site, Path(folder) / "new")
        if out.exists():
            out.rename(Path(folder) / "old")
        (Path(folder) / "new").rename(out)


def build(
    notebooks: Path
    | str
    | None = None,  # folder with executed notebooks below `nbs/` and `ioi_nbs/`; default: the repository's own
    out: Path | str = "_site",  # folder to write; an older site there is replaced
    root: Path | str | None = None,  # folder that holds `_quarto.yml`; default: here or the nearest above
) -> Path:  # the home page
    """Build the documentation site from executed notebooks, and check it.

    Nothing is executed but imports and exported cells, by nbdev, to read signatures from live objects.
    Links on the site are relative: it works from a folder on disk, and from any place on a server.
    Raises ValueError for a page of `_quarto.yml` without a notebook, for a link that leads nowhere, and for anything
    that a page would load from outside the site; ImportError without nbdev and pypandoc.
    """
    root, out = _find_root(root), Path(out)
    notebooks = Path(notebooks or root).resolve()
    if out.exists() and any(out.iterdir()) and not (out / "assets" / "site.css").is_file():
        raise ValueError(f"out: {out} holds something that is not a site; name another folder or remove it.")
    config = configured(root)
    pages = read_pages(config)
    redirects = read_redirects(config, pages)
    written = [page for page in pages if page.staged != GENERATED]
    absent = [page.source for page in written if not (notebooks / page.source).is_file()]
    if absent:
        raise ValueError(
            f"_quarto.yml lists {', '.join(absent)}, which {notebooks} does not hold; "
            "execute it or take it off the list."
        )
    if missing := [name for name in ("nbdev", "pypandoc") if find_spec(name) is None]:
        raise ImportError(f"Building the site needs {' and '.join(missing)}: pip install 'namemovers[notebooks,site]'.")
    with tempfile.TemporaryDirectory(prefix="namemovers-site-") as folder:
        site = Path(folder)
        tidied = tidied_notebooks(notebooks, pages)
        write_files(notebooks, pages, config, site)
        render_pages(tidied, pages, config, site)
        _write_redirects(redirects, site)
        if wrong := check(site):
            raise ValueError("The site has mistakes:\n" + "\n".join(wrong))
        _put_in_place(site, out)
    return out / pages[0].url
