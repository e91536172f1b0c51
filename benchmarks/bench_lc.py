"""Coverage of the length-controlled win rate's jackknife interval, on public annotations taken as
the population.

The 805 published rows of a model (with their gamed-baseline rows) are the population, its fitted LC
win rate the truth. Each draw takes 805 instructions with replacement, fits, makes the
delete-one-instruction jackknife, and asks whether t over instructions covers the truth. Expected:
92.5–97.5 % at 400 draws. Also printed: the library's standard error against the spread of the
draws. Writes results/bench/lc.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks import write
from harness.evaluate import lc

TARGET = (92.5, 97.5)


def public(folder: Path, model: str) -> tuple[lc.OwnRows, lc.GamedRows]:
    """A model's rows and the gamed rows from files as the benchmark's owners publish them."""
    gamed = pd.read_csv(folder / "df_gamed_reconstructed.csv")
    frame = pd.DataFrame(json.loads((folder / model / "annotations.json").read_text()))
    difficulty = gamed.drop_duplicates("index")["instruction_difficulty"].to_numpy()
    delta = np.asarray(frame["output_1"].str.len() - frame["output_2"].str.len(), np.float64)
    columns = [
        gamed[name].to_numpy()
        for name in ("index", "preference", "std_delta_len", "instruction_difficulty")
    ]
    return lc.OwnRows(frame["preference"].to_numpy(float) - 1, delta, difficulty), lc.GamedRows(
        *columns
    )


def resample(
    own: lc.OwnRows, gamed: lc.GamedRows, rng: np.random.Generator
) -> tuple[lc.OwnRows, lc.GamedRows]:
    """As many instructions with replacement; each brings its own gamed rows."""
    drawn = rng.integers(len(own.delta), size=len(own.delta))
    order = np.argsort(gamed.item, kind="stable")
    start = np.searchsorted(gamed.item[order], np.arange(len(own.delta) + 1))
    rows = [order[start[item] : start[item + 1]] for item in drawn]
    place = np.repeat(np.arange(len(drawn)), [len(part) for part in rows])
    kept = np.concatenate(rows)
    return (
        lc.OwnRows(own.preference[drawn], own.delta[drawn], own.difficulty[drawn]),
        lc.GamedRows(
            place, gamed.preference[kept], gamed.std_delta_len[kept], gamed.difficulty[kept]
        ),
    )


def coverage(
    own: lc.OwnRows, gamed: lc.GamedRows, draws: int, rng: np.random.Generator
) -> dict[str, float]:
    """Share of draws whose 95 % interval holds the population's LC win rate; mean jackknife error
    against the spread of the points.
    """
    truth = lc.length_controlled(own, gamed)
    count = len(own.delta)
    quantile = float(stats.t.ppf(0.975, count - 1))
    points, errors = [], []
    for _ in range(draws):
        rows = resample(own, gamed, rng)
        point = lc.length_controlled(*rows)
        points.append(point)
        errors.append(lc.standard_error(lc.pseudo_values(point, lc.leave_one_out(*rows))))
    covered = np.abs(np.array(points) - truth) <= quantile * np.array(errors)
    return {
        "lc": truth,
        "coverage": 100 * float(covered.mean()),
        "jackknife_se": float(np.mean(errors)),
        "spread": float(np.std(points, ddof=1)),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the file; returns 1 when a model's coverage is outside the target,
    0 without the public files.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=400)
    args = parser.parse_args(argv)
    folder = Path(os.environ.get("SHARED_DATA", "../shared/data")) / "alpaca_eval"
    if not folder.is_dir():
        print(f"no public annotations at {folder}; set SHARED_DATA")
        return 0
    found = {}
    for path in sorted(folder.glob("*/annotations.json")):
        own, gamed = public(folder, path.parent.name)
        if len(own.delta) == len(np.unique(gamed.item)) and not lc.degenerate(own):
            found[path.parent.name] = coverage(own, gamed, args.draws, np.random.default_rng(0))
            shown = {key: round(value, 3) for key, value in found[path.parent.name].items()}
            print(path.parent.name, shown, flush=True)
    write("lc", {"draws": args.draws, "models": found})
    return int(any(not TARGET[0] <= row["coverage"] <= TARGET[1] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
