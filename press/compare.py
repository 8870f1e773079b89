"""Whether two folders hold the same results: every variable of every file, to float32 rounding.

`python -m press.compare OLD NEW` says so, for a change of the library that must leave every number as it was. The exit
status is 0 where they are the same, 1 where they differ, 2 where they cannot be compared.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

RELATIVE = 2e-5  # to the largest number of a variable: what float32 leaves of logits near 20
NOISE = 2e-6  # what float32 leaves of a zero


def _results(folder: str | Path) -> dict[str, Path]:
    """Path below the folder, without `.nc` -> the file. Raises ValueError where there is none."""
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*.nc") if not path.name.startswith("."))
    if not found:
        raise ValueError(f"There are no results (*.nc) in {folder}; name a folder such as results/mini.")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def _opened(path: Path) -> xr.Dataset:
    try:
        return xr.load_dataset(path, engine="h5netcdf", decode_times=False)
    except Exception as e:  # whatever HDF5 or netCDF make of a damaged file
        raise ValueError(f"The result {path} cannot be read ({type(e).__name__}); make it again.") from None


def _unequal(old: np.ndarray, new: np.ndarray, relative: float, noise: float) -> np.ndarray:
    """Which cells differ. Floats may differ by rounding; everything else, NaN and infinity must be the same."""
    if old.dtype.kind != "f" and new.dtype.kind != "f":
        return np.asarray(old != new)
    old, new = old.astype(float), new.astype(float)
    sizes = np.abs(np.concatenate([old.ravel(), new.ravel()]))
    largest = float(np.max(sizes, initial=0.0, where=np.isfinite(sizes)))
    return ~np.isclose(old, new, rtol=0.0, atol=max(relative * largest, noise), equal_nan=True)


def _cell(variable: xr.DataArray, at: tuple) -> str:
    """Where a cell is, by the labels of its dimensions: "layer = 3, head = 2"."""
    if not at:
        return "its one value"
    labels = [variable[dim].values[i] if dim in variable.coords else i for dim, i in zip(variable.dims, at)]
    return ", ".join(f"{dim} = {label}" for dim, label in zip(variable.dims, labels))


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def _variable(old: xr.DataArray, new: xr.DataArray, relative: float, noise: float) -> str:
    """How a variable differs, in words; empty where it is the same."""
    shapes = [dict(zip(variable.dims, variable.shape)) for variable in (old, new)]
    if (old.dims, old.shape) != (new.dims, new.shape):
        return f"has another shape: {shapes[0]}, now {shapes[1]}"
    numbers = [variable.dtype.kind in "iufb" for variable in (old, new)]
    if numbers[0] != numbers[1]:
        return f"has another type: {old.dtype}, now {new.dtype}"
    unequal = _unequal(old.values, new.values, relative, noise)
    if not unequal.any():
        return ""
    first = tuple(np.argwhere(unequal)[0])
    said = f"differs in {int(unequal.sum())} of {unequal.size} cells"
    if all(numbers):
        gaps = np.abs(old.values.astype(float) - new.values.astype(float))[unequal]
        finite = gaps[np.isfinite(gaps)]
        said += f", by {finite.max():.3g} at most" if finite.size else ""
        said += f", {gaps.size - finite.size} of them where one is not finite" if finite.size < gaps.size else ""
    was, now = _value(old.values[first]), _value(new.values[first])
    return f"{said}; first at {_cell(old, first)}: {was}, now {now}"


def compare(
    old: str | Path,  # a folder with results, those below it included
    new: str | Path,  # another
    relative: float = RELATIVE,  # what floats may differ by, to the largest of their variable
    noise: float = NOISE,  # what they may differ by however small the variable
) -> list[str]:  # a line for each difference; none where both folders hold the same
    """Compare the variables and coordinates of all results of two folders; where they come from is not compared.

    Raises ValueError for a folder without results, and for a file that cannot be read.
    """
    files = _results(old), _results(new)
    told = [f"{name}: the result is missing" for name in files[0] if name not in files[1]]
    told += [f"{name}: the result is new" for name in files[1] if name not in files[0]]
    for name in files[0]:
        if name not in files[1]:
            continue
        a, b = _opened(files[0][name]), _opened(files[1][name])
        told += [f"{name}, {v}: the variable is missing" for v in a.variables if v not in b.variables]
        told += [f"{name}, {v}: the variable is new" for v in b.variables if v not in a.variables]
        for v in a.variables:
            if v in b.variables and (how := _variable(a[v], b[v], relative, noise)):
                told.append(f"{name}, {v}: {how}")
    return told


def main(given: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m press.compare", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("old", help="a folder with results, such as results/mini")
    parser.add_argument("new", help="another")
    parser.add_argument("--relative", type=float, default=RELATIVE, help="tolerance, to the largest of a variable")
    asked = parser.parse_args(given)
    try:
        told = compare(asked.old, asked.new, asked.relative)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    print("\n".join(told) if told else f"The same: {len(_results(asked.old))} results.")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
