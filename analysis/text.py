"""Text that came from a model, made safe to show: as text, everywhere, whatever it holds.

``visible`` replaces what a reader could not see or what would act on a terminal or a page (control
characters, escape sequences, bidirectional marks, lone surrogates) by a visible name. ``html``,
``markdown``, ``latex`` and ``csv_cell`` build on it.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from html import escape

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""C0 and C1 controls (tab and newline stay), bidirectional marks and isolates, invisible and tag
characters, lone surrogates.
"""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "[": "{[}",
    "]": "{]}",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "κ": r"$\kappa$",
    "π": r"$\pi$",
    "θ": r"$\theta$",
    "σ": r"$\sigma$",
    "ρ": r"$\rho$",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "²": r"$^2$",
    "Δ": r"$\Delta$",
    "→": r"$\rightarrow$",
    "∅": r"$\emptyset$",
    "‖": r"$\Vert$",
    "’": "'",
    "†": r"$^\dagger$",
    "ᴴ": r"$^{\mathrm{H}}$",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
}


def _name(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # the control picture: ␛ for escape
    if code == 0x7F:
        return "␡"
    return f"‹U+{code:04X}›"


def visible(text: str) -> str:
    """``text`` with every character that is invisible, acts, or cannot be encoded replaced by a
    visible name. Idempotent.
    """
    return _HIDDEN.sub(_name, str(text).replace("\r\n", "\n"))


def one_line(text: str, limit: int = 0) -> str:
    """``visible`` on one line, cut to ``limit`` characters with an ellipsis (0: not cut)."""
    line = " ".join(visible(text).split())
    return line if not limit or len(line) <= limit else line[: max(limit - 1, 0)] + "…"


def html(text: str) -> str:
    """Text for an HTML element or a quoted attribute."""
    return escape(visible(text))


def markdown(text: str) -> str:
    """Text for one Markdown table cell or sentence: markup characters escaped, line breaks turned
    into spaces.
    """
    line = one_line(text)
    line = re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", line)
    return re.sub(r"&(?=[#a-zA-Z])", "&amp;", line)


def latex(text: str) -> str:
    """Text for LaTeX (pdflatex, T1): specials escaped, known symbols as math, any other character
    outside ASCII by its code point.
    """
    pieces = []
    line = one_line(text)
    for position, char in enumerate(line):
        if char == "\u0302":
            continue
        if line[position + 1 : position + 2] == "\u0302" and char.isalpha():
            pieces.append(rf"$\hat{{{char}}}$")
        elif char in _LATEX:
            pieces.append(_LATEX[char])
        elif ord(char) < 0x7F:
            pieces.append(char)
        else:
            pieces.append(rf"\texttt{{U+{ord(char):04X}}}")
    return "".join(pieces)


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
    runs = text[:1] in ("=", "+", "@", "-") and not _is_number(text)
    return f"'{text}" if runs else text


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV file's text, with a final newline."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in header])
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number for a reader: fixed digits, a true minus sign, no negative zero; "–" when there is
    none.
    """
    if value is None or not math.isfinite(value):
        return "–"
    rounded = round(float(value), digits) + 0.0
    text = f"{abs(rounded):.{digits}f}"
    if rounded < 0:
        return "−" + text
    return ("+" if sign and rounded > 0 else "") + text


def p_value(p: float | None) -> str:
    """A p value for a reader: two significant digits, never 0."""
    if p is None or not math.isfinite(p):
        return "–"
    if p < 0.001:
        return "< 0.001"
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
