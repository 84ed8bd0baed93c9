"""A cell as a figure."""

from xml.etree import ElementTree

from archrepair_core.search.dag import Edge
from archrepair_core.search.drawing import draw_svg
from archrepair_core.search.genotype import Edit

EDIT = Edit(
    "layer1.<0>",
    tuple(Edge(*ends) for ends in [("input", "1", "a"), ("1", "output", "b"), ("input", "output", "original")]),
)


def test_the_figure_is_valid_names_everything_and_stays_inside_its_frame():
    root = ElementTree.fromstring(draw_svg([EDIT, EDIT]))
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in root.iter(f"{space}text")]
    assert sorted(set(words)) == ["1", "a", "b", "input", "layer1.<0>", "original", "output"]
    assert len(words) == 14
    height = float(root.attrib["height"])
    assert all(0 < float(text.attrib["y"]) < height for text in root.iter(f"{space}text"))
