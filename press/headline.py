"""What the study found, in one table: that of the home page, as text."""

from pathlib import Path


def headline(folder: str | Path, k: int = 3) -> str:
    """`namemovers.compare.headline` of the results in `folder`, with k heads a method, as text: a column a task.

    One line, which names the result that is missing or damaged, where there is no table.
    """
    from namemovers import compare

    try:
        table = compare.headline(folder, k).set_index("task").T
    except (FileNotFoundError, KeyError, ValueError, OSError) as e:
        return f"No headline: {e.args[0] if e.args else type(e).__name__}"
    rows = [("", *table.columns)]
    rows += [(str(name), *map(str, row)) for name, row in zip(table.index, table.values)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("   ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines).replace("−", "-")  # not every terminal has the sign
