"""A matplotlib figure as SVG that belongs to a page: its colours are the page's, its ids are its own.

A Content-Security-Policy without `unsafe-inline` forbids `style` attributes, so every declaration becomes an attribute
of its own; the colours of `COLOURS` become CSS variables, which is what makes the dark mode dark.
"""

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

SVG = "{http://www.w3.org/2000/svg}"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
# Okabe and Ito's palette, by what a colour means here. The values only have to differ: the page has its own.
COLOURS = {
    "ink": "#010101",
    "muted": "#7f7f7e",
    "line": "#cfcfce",
    "good": "#0072b2",
    "bad": "#d55e00",
    "doubt": "#997700",
    "second": "#009e73",
    "third": "#cc79a7",
    "paper": "#fefefe",
    "shade": "#e8f1f8",
}
SETTINGS: Any = {  # matplotlib's stubs want a literal type of every key
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.unicode_minus": True,
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["ink"]),
    "axes.edgecolor": COLOURS["muted"],
}
# Marks of figures.py in the ids of what it drew: a value's pointer and style, or the words shown under the mouse.
VALUE_MARK, TITLE_MARK = "at:", "title:"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT_SIZE = re.compile(r"([\d.]+)px")


def page_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as inline SVG with a title and a description for those who do not see it."""
    ElementTree.register_namespace("", SVG[1:-1])
    ElementTree.register_namespace("xlink", XLINK_HREF[1:].partition("}")[0])
    written = io.BytesIO()
    with rc_context(SETTINGS), warnings.catch_warnings():
        # The browser has glyphs for names that the font used for measuring has not.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(written, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    _drop(root, f"{SVG}metadata")
    _drop(root, f"{SVG}style")
    used = _referenced(root)
    for element in root.iter():
        _spread_style(element)
        _own_id(element, name, used)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-description", "class": "figure"}
    for place, (kind, text) in enumerate((("title", title), ("desc", description))):
        words = ElementTree.Element(f"{SVG}{kind}", {"id": f"{name}-{'title' if kind == 'title' else 'description'}"})
        words.text = text
        root.insert(place, words)
    return ElementTree.tostring(root, encoding="unicode")


def _drop(root: ElementTree.Element, tag: str) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == tag]:
            parent.remove(child)


def _referenced(root: ElementTree.Element) -> set[str]:
    found = {element.get(XLINK_HREF, "").removeprefix("#") for element in root.iter()}
    for element in root.iter():
        found |= {name for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    return found


def _spread_style(element: ElementTree.Element) -> None:
    for declaration in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            size = _FONT_SIZE.search(value)
            element.set("font-size", size[1] if size else "9")
            if "bold" in value or "700" in value:
                element.set("font-weight", "bold")
        elif key:
            element.set(key, value)
    element.attrib.pop("font-family", None)  # the page's own, of which a telephone has other ones than a desk
    for key in ("fill", "stroke"):
        if element.get(key) in _VARIABLES:
            element.set(key, _VARIABLES[element.attrib[key]])


_VARIABLES = {value: f"var(--{name})" for name, value in COLOURS.items()}


def _own_id(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Ids that nothing refers to go; what is referred to gets the figure's name; marks become what they say."""
    own = element.attrib.pop("id", "")
    if own.startswith(VALUE_MARK):
        pointer, _, style = own.removeprefix(VALUE_MARK).rpartition("|")
        element.attrib |= {"data-path": pointer, "data-as": style}
    elif own.startswith(TITLE_MARK):
        title = ElementTree.Element(f"{SVG}title")
        title.text = own.removeprefix(TITLE_MARK)
        element.insert(0, title)
    elif own.startswith(("xtick", "ytick")):
        element.set("class", "tick")
    elif own and own in used:
        element.set("id", f"{name}-{own}")
    for key, value in list(element.attrib.items()):
        if key == XLINK_HREF:
            element.set(key, f"#{name}-{value.removeprefix('#')}")
        elif "url(#" in value:
            element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
