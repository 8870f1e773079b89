"""Which notebooks there are, and which of their cells run."""

from pathlib import Path

FOLDERS = ("nbs", "ioi_nbs")  # where notebooks are


def notebooks(root: str | Path = ".") -> list[Path]:
    """The notebooks of a repository, relative to `root`, in the order of their names: `nbs/` first.

    Raises ValueError where there are none.
    """
    root = Path(root)
    found = [path.relative_to(root) for folder in FOLDERS for path in (root / folder).rglob("*.ipynb")]
    found = [path for path in found if not any(part[0] in "._" for part in path.parts)]
    if not found:
        raise ValueError(
            f"There are no notebooks below {root.resolve()}; "
            "run the study in a clone of the repository, where nbs/ and ioi_nbs/ are."
        )
    return sorted(found, key=lambda path: (FOLDERS.index(path.parts[0]), path.as_posix()))


def chosen(paths: list[Path], only: list[str] | None) -> list[Path]:
    """Those of `paths` that `only` names, all where it names none. Raises ValueError for an unknown name."""
    if not only:
        return paths
    wanted = {Path(name).with_suffix(".ipynb") for name in only}
    unknown = sorted(path.as_posix() for path in wanted - set(paths))
    if unknown:
        there = ", ".join(path.as_posix() for path in paths)
        raise ValueError(f"There is no notebook {unknown[0]!r}; there are {there}.")
    return [path for path in paths if path in wanted]


def left_out(path: Path, flags: tuple[str, ...] = ()) -> set[int]:
    """The cells that nbdev would not run: those marked `#| eval: false`, and those marked with one of `flags`."""
    from fastcore.nbio import does_cell_eval, fm_default_eval, nb_frontmatter, read_nb

    nb = read_nb(path)
    meta = nb_frontmatter(nb)
    if str(meta.get("skip_exec", "")).lower() == "true":
        return set(range(len(nb.cells)))
    runs = fm_default_eval(meta)
    code = [(at, cell) for at, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    return {at for at, cell in code if not does_cell_eval(cell, runs) or set(flags) & directives(cell.source)}


def directives(source: str) -> set[str]:
    """The names of the `#|` lines that open a cell."""
    found = set()
    for line in source.splitlines():
        if not line.lstrip().startswith("#|"):
            break
        words = line.lstrip().removeprefix("#|").replace(":", " ").split()
        found |= set(words[:1])
    return found
