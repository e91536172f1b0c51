"""A figure and its files: PDF, SVG and PNG with fixed bytes, and the CSV of what it shows. Sizes
are of a two-column paper; arms differ by marker, line and lightness too, for grey prints.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import text
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.stats import Estimate
from analysis.table import Observation, ends, same_names
from harness.files import write_atomic

SINGLE, DOUBLE = 3.3, 6.9
"""Widths in inches of one column and of both."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ((5, 1), (3, 1, 1, 1, 1, 1), (1, 1), (7, 2), (2, 2))
LINES: tuple[Any, ...] = ("--", "-", (0, DASHES[0]), "-.", *((0, dash) for dash in DASHES[1:]))
DISTINCT = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
"""Okabe and Ito's colours; the baseline is black."""
PNG_DPI = 200
STYLE = mpl.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), False)


@dataclass(frozen=True)
class Drawn:
    """``data``: every number in it, one observation a row; ``alt``: what is to be seen."""

    key: str
    title: str
    caption: str
    figure: Figure
    data: Sequence[Observation]
    alt: str = ""
    rendered: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        same_names(f"figure {self.key}, data", self.data)


@dataclass(frozen=True)
class ArmStyle:
    color: str
    marker: str
    line: Any
    label: str

    @property
    def look(self) -> dict[str, Any]:
        """How its line is drawn."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.line}

    def handle(self) -> Line2D:
        return Line2D([], [], label=self.label, **self.look)


@contextmanager
def paper_style() -> Iterator[None]:
    """matplotlib's defaults with ``STYLE`` on top, whatever the user's configuration says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, np.ndarray]:
    """A figure on the Agg canvas (no global state) and its axes as an array (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False))


def styles(data: StudyData) -> dict[str, ArmStyle]:
    """Arm → style. One numeric axis: light to dark; else distinct; baseline black, dashed."""
    others = [arm for arm in data.arms if arm != data.baseline_arm]
    values: dict[str, Any] = {a: next(iter(data.arms[a][0].arm.values()), None) for a in others}
    numbers = [a for a in others if len(data.axes) == 1 and type(values[a]) in (int, float)]
    numbers.sort(key=lambda arm: (float(values[arm]), arm))
    named = [arm for arm in others if arm not in numbers]
    colours = ramp("viridis", 0.78, 0.1, len(numbers))[: len(numbers)]
    colours += [DISTINCT[1 + i % (len(DISTINCT) - 1)] for i in range(len(named))]
    order = [data.baseline_arm, *numbers, *named]
    look = dict(zip(order, enumerate([DISTINCT[0], *colours]), strict=True))
    return {arm: nth_style(*look[arm], shown(data.label(arm))) for arm in data.arms}


def ramp(name: str, start: float, end: float, count: int) -> list[str]:
    """``count`` colours along one of matplotlib's maps."""
    places = np.linspace(start, end, max(count, 2))
    return [mpl.colors.to_hex(colour) for colour in mpl.colormaps[name](places)]


def nth_style(number: int, color: str, label: str) -> ArmStyle:
    """The marker and line that come ``number``-th, in a colour."""
    return ArmStyle(color, MARKERS[number % len(MARKERS)], LINES[number % len(LINES)], label)


def shown(label: str, limit: int = 48) -> str:
    """A label for a figure: visible characters only, no mathtext, not too long."""
    return text.one_line(label, limit).replace("$", r"\$")


_SYMBOL = re.compile(r"(π|y|‖g)_(θ|ref|prev|explore|DPO|0|w|l)(?![A-Za-z])")


def symbols(label: str) -> str:
    """π_ref, y_w and the like as mathematics; everything else as it is."""
    names = {"π": r"\pi", "θ": r"\theta", "y": "y", "‖g": "g"}

    def as_math(match: re.Match[str]) -> str:
        base, index = match.groups()
        lower = names.get(index) or (index if len(index) == 1 else rf"\mathrm{{{index}}}")
        return ("‖" if base == "‖g" else "") + f"${names[base]}_{{{lower}}}$"

    return _SYMBOL.sub(as_math, label).replace("r\u0302", r"$\hat{r}$")


def legend_below(figure: Figure, handles: Sequence[Any], columns: int = 6) -> None:
    """A legend under the figure, as wide as its labels allow; further rows make it grow."""
    if not handles:
        return
    width, height = figure.get_size_inches()
    labels = [len(str(handle.get_label())) for handle in handles]

    def needed(columns: int) -> float:
        """Inches: lines and gaps, then the longest label of every column in 7 pt characters."""
        rows = -(-len(labels) // columns)
        return sum(0.56 + 0.056 * max(labels[i : i + rows]) for i in range(0, len(labels), rows))

    columns = next((n for n in range(min(columns, len(labels)), 1, -1) if needed(n) <= width), 1)
    figure.set_size_inches(width, height + 0.155 * (-(-len(labels) // columns) - 1))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def error_bar_note(data: StudyData) -> str:
    """What the error bars of a figure are, for its caption."""
    if len(data.seeds) >= 3:
        return "error bars: 95 % interval (A), this benchmark and new seeds"
    give = "gives" if len(data.seeds) == 1 else "give"
    seeds = text.plural(len(data.seeds), "seed")
    return f"no error bars, because {seeds} {give} no interval over seeds"


def dodge(number: int, count: int, width: float) -> float:
    """Sideways offset of ``number`` of ``count``: points at one x must not hide one another."""
    return 0.0 if count < 2 else width * (number / (count - 1) - 0.5)


def hollow(style: ArmStyle, size: float = 2.4, width: float = 0.6) -> dict[str, Any]:
    """How the mark of a single seed is drawn."""
    look = {"marker": style.marker, "markersize": size, "markerfacecolor": "none"}
    edge = {"markeredgecolor": style.color, "markeredgewidth": width}
    return {**look, **edge, "linestyle": "none"}


def pale(style: ArmStyle) -> dict[str, Any]:
    """How the mark of a single seed is drawn where lines run: it must not hide them."""
    return {**hollow(style, 2.2), "alpha": 0.45, "zorder": 1.5}


def set_title(axes: Axes, title: str) -> None:
    """A title on as many lines as its panel is wide, and symbols as mathematics."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    columns = axes.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    room = figure.get_size_inches()[0] / columns - 0.5
    axes.set_title("\n".join(symbols(line) for line in textwrap.wrap(title, int(room / 0.062))))


def axis_label(measure: Measure) -> str:
    """Name and unit, as mathematics where it has symbols."""
    named = measure.unit and measure.unit not in measure.name
    return symbols(measure.with_unit if named else measure.name)


NO_ENDS = dict.fromkeys(("A_low", "A_high", "B_low", "B_high"))


def seeds_and_mean(
    place: Observation, points: Mapping[int, float], estimate: Estimate
) -> list[Observation]:
    """Rows of every seed's point and, where there is one, of the mean with its intervals."""
    rows: list[Observation] = [
        {**place, "kind": "seed", "seed": seed, "value": value, **NO_ENDS}
        for seed, value in points.items()
    ]
    if estimate.value is not None:
        mean = {"kind": "mean", "seed": None, "value": estimate.value}
        rows.append({**place, **mean, **ends(estimate, "A", "B")})
    return rows


METADATA: Mapping[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
CANVASES = {"pdf": FigureCanvasPdf, "svg": FigureCanvasSVG, "png": FigureCanvasAgg}


def render(drawn: Drawn, kind: str) -> bytes:
    """The same bytes for the same data (no dates, fixed identifiers), rendered once per kind. The
    canvases print directly: ``savefig`` would draw every figure twice.
    """
    if kind not in drawn.rendered:
        buffer, figure = io.BytesIO(), drawn.figure
        with paper_style():
            if figure.get_layout_engine() is not None:
                figure.draw_without_rendering()  # settles the layout once for all formats
                figure.set_layout_engine("none")
            screen = figure.dpi
            if kind == "png":  # the others' canvases set their own
                figure.dpi = PNG_DPI
            getattr(CANVASES[kind](figure), f"print_{kind}")(buffer, metadata=METADATA[kind])
            figure.dpi = screen
        drawn.rendered[kind] = buffer.getvalue()
    return drawn.rendered[kind]


def write_figure(drawn: Drawn, folder: Path) -> None:
    """Write ``<key>.pdf``, ``.svg``, ``.png`` and ``.csv``."""
    for kind in METADATA:
        write_atomic(folder / f"{drawn.key}.{kind}", render(drawn, kind))
    write_atomic(folder / f"{drawn.key}.csv", text.csv_text(list(drawn.data[0]), drawn.data))
