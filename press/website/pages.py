"""The pages, their order and their addresses, from `_quarto.yml`.

It is written for a project whose root is `nbs/`, as nbdev has it: `core/model.ipynb` stands for `nbs/core/model.ipynb`.
The second folder of notebooks keeps its name, so `ioi_nbs/00_data.ipynb` is itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ASSETS = Path(__file__).parents[1] / "assets"  # what every page loads: styles, scripts, the frame of a page
GENERATED = "api.ipynb"  # the page that `build` writes itself


@dataclass
class Page:
    """One page of the site."""

    source: str  # notebook below the root of the project, as `nbs/core/model.ipynb`
    section: str = ""  # heading of the navigation that it stands under
    text: str = ""  # its name in the navigation, where that is not its title
    title: str = ""
    description: str = ""

    @property
    def staged(self) -> str:
        """The notebook's place in `_quarto.yml`."""
        return self.source.removeprefix("nbs/")

    @property
    def url(self) -> str:
        """The page's address below the site's root: nbdev's rule, `00_data.ipynb` becomes `data.html`."""
        path = PurePosixPath(self.staged)
        name = re.sub(r"^\d+[a-z0-9]*_", "", path.name.lower())
        return path.with_name(name).with_suffix(".html").as_posix()

    @property
    def root(self) -> str:
        """The way from the page back to the site's root."""
        return "../" * self.url.count("/")


def read_config(root: Path) -> dict:
    """The site's configuration: `_quarto.yml` in `root`. Raises ValueError where it is missing or lists no pages."""
    import yaml

    path = Path(root) / "_quarto.yml"
    if not path.is_file():
        raise ValueError(f"root: no _quarto.yml in {Path(root).resolve()}; run from the repository or name its folder.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        contents = config.get("website", {}).get("sidebar", {}).get("contents")
    except (yaml.YAMLError, AttributeError) as e:
        raise ValueError(f"{path} cannot be read ({' '.join(str(e).split())}).") from None
    if not contents:
        raise ValueError(f"{path}: website.sidebar.contents lists no pages.")
    return config


def read_pages(config: dict) -> list[Page]:
    """The pages in reading order, from `website.sidebar.contents`."""
    pages = []

    def walk(items, section):
        for item in items:
            item = {"href": item} if isinstance(item, str) else item
            if "section" in item:
                walk(item.get("contents", []), item["section"])
            else:
                href = item["href"]
                source = href if href.startswith("ioi_nbs/") else "nbs/" + href
                pages.append(Page(source, section, item.get("text", "")))

    walk(config["website"]["sidebar"]["contents"], "")
    urls = [page.url for page in pages]
    twice = {url for url in urls if urls.count(url) > 1}
    if twice:
        raise ValueError(f"_quarto.yml: two notebooks would become the page {sorted(twice)[0]}; rename one of them.")
    return pages


def read_redirects(config: dict, pages: list[Page]) -> dict[str, str]:
    """Addresses that pages once had, and where their readers are sent: `redirects` of `_quarto.yml`.

    Raises ValueError for one that leads to no page, or whose address is a page's.
    """
    redirects = dict(config.get("redirects") or {})
    urls = {page.url for page in pages}
    for old, new in redirects.items():
        if new not in urls:
            raise ValueError(f"_quarto.yml: redirects sends {old} to {new}, which is no page.")
        if old in urls:
            raise ValueError(f"_quarto.yml: redirects sends {old} elsewhere, but there is a page of that address.")
    return redirects
