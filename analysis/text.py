"""Text that came from a model, made safe to show: ``visible`` names what could not be seen or
would act on a terminal or a page; ``html``, ``markdown``, ``latex``, ``csv_cell`` build on it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from html import escape

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""C0 and C1 controls but tab and newline; bidirectional, invisible, tag marks; surrogates."""

_MATH = (
    *("alpha", "beta", "kappa", "pi", "theta", "sigma", "rho", "lambda", "pm", "times", "cdot"),
    *("geq", "leq", "Delta", "rightarrow", "emptyset", "Vert"),
)
_TEXT = (
    *("asciicircum", "asciitilde", "backslash", "less", "greater", "bar", "quotedbl"),
    *("asciigrave", "quotesingle"),
)
_LATEX = (
    {char: f"\\{char}" for char in "{}$&#%_"}
    | {char: rf"\text{name}{{}}" for char, name in zip("^~\\<>|\"`'", _TEXT, strict=True)}
    | {char: rf"$\{name}$" for char, name in zip("αβκπθσρλ±×·≥≤Δ→∅‖", _MATH, strict=True)}
    | {"[": "{[}", "]": "{]}", "−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}", "’": "'"}
    | {"²": "$^2$", "†": r"$^\dagger$", "ᴴ": r"$^{\mathrm{H}}$", "“": "``", "”": "''"}
    | {"\u00a0": "~"}
)


def _name(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # the control picture: ␛ for escape
    return "␡" if code == 0x7F else f"‹U+{code:04X}›"


def visible(text: str) -> str:
    """Invisible, acting or unencodable characters replaced by a visible name. Idempotent."""
    return _HIDDEN.sub(_name, str(text).replace("\r\n", "\n"))


def one_line(text: str, limit: int = 0) -> str:
    """``visible`` on one line, cut to ``limit`` characters with an ellipsis (0: not cut)."""
    line = " ".join(visible(text).split())
    return line if not limit or len(line) <= limit else line[: max(limit - 1, 0)] + "…"


def html(text: str) -> str:
    """Text for an HTML element or a quoted attribute."""
    return escape(visible(text))


def markdown(text: str) -> str:
    """Text for one Markdown cell or sentence: markup escaped, line breaks as spaces."""
    line = one_line(text)
    line = re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", line)
    return re.sub(r"&(?=[#a-zA-Z])", "&amp;", line)


def template(name: str, *, html: bool = False) -> Template:
    """A template that lies beside the analysis: of HTML (texts are escaped), or of Markdown (they
    are by its filter ``md``).
    """
    loader = PackageLoader("analysis", ".")
    environment = Environment(
        loader=loader, autoescape=html, undefined=StrictUndefined, keep_trailing_newline=not html
    )
    environment.filters["md"] = markdown
    return environment.get_template(name)


def latex(text: str) -> str:
    """Text for LaTeX (pdflatex, T1): specials escaped, symbols as math, others by code point."""

    def written(match: re.Match[str]) -> str:
        char, hat = match.groups()
        if hat and char.isalpha():
            return rf"$\hat{{{char}}}$"
        plain = char if ord(char) < 0x7F else rf"\texttt{{U+{ord(char):04X}}}"
        return _LATEX.get(char, plain)

    return re.sub("(.)(\u0302*)", written, one_line(text).lstrip("\u0302"))


def csv_cell(value: object) -> str:
    """One CSV cell before quoting: numbers with full precision (empty when undefined); text that a
    spreadsheet would run as a formula gets a quote in front.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):  # numpy's too, whose own repr names the type
        return repr(float(value))
    text = visible(str(value))
    with contextlib.suppress(ValueError):  # -1.5 is none
        float(text)
        return text
    return f"'{text}" if text[:1] in ("=", "+", "@", "-") else text


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A CSV file's text, with a final newline."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    writer.writerows(map(csv_cell, row.values()) for row in rows)
    return out.getvalue()


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Fixed digits, a true minus sign, no negative zero; "–" when there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    rounded = round(float(value), digits) + 0.0
    text = f"{abs(rounded):.{digits}f}"
    if rounded < 0:
        return "−" + text
    return ("+" if sign and rounded > 0 else "") + text


def finer(digits: int, size: float | None) -> int:
    """``digits``, or as many as show two significant ones of a spread or limit that is less than
    one unit of the last place, so that none reads as 0 or as twice itself.
    """
    if size is None or not 1e-12 < size < 10.0**-digits:
        return digits
    return 1 - math.floor(math.log10(size))


def size(value: float | None, digits: int) -> str:
    """A spread, or an effect that could be detected: never rounded to 0 or to twice itself."""
    return number(value, finer(digits, value))


def p_value(p: float | None) -> str:
    """A p value for a reader: never 0, and never 0.05 where it is beside it."""
    if p is None or not math.isfinite(p):
        return "–"
    if p < 0.001:
        return "< 0.001"
    if round(p, 3) == 0.05:
        return f"{p:.4f}"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def coefficient(value: float | None) -> str:
    """A coefficient such as c or κ: shortest form with at most three significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3g}".replace("-", "−")


def listed(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"; "none" without any."""
    *head, last = list(names) or ["none"]
    return f"{', '.join(head)} and {last}" if head else last


def capitalised(sentence: str) -> str:
    """The sentence with a capital letter in front, all else as it is."""
    return sentence[:1].upper() + sentence[1:]


def plural(count: int, what: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count} {what}{'s' * (count != 1)}"
