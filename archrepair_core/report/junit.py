"""The gates as JUnit XML, so that a CI shows each as a test.

A gate that failed and one that is inconclusive are both failures, of that type: the command line does not exit with 0
for either. A gate whose data was not given is skipped.
"""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from archrepair_core.report.numbers import escaped, value_at

FAILURES = ("fail", "inconclusive")
SKIPPED = "not_evaluated"
PROPERTIES = (
    "/schema_version", "/verdict", "/outcome", "/reason", "/test/n", "/test/accuracy/before", "/test/accuracy/after",
    "/test/fixed", "/test/broken", "/test/mcnemar_p", "/environment/archrepair", "/spec/seed",
)  # fmt: skip


def render_junit(report: Mapping[str, Any]) -> str:
    """One suite with a case per gate; what was measured stands in the properties, under its path in report.json."""
    gates = report["gates"]
    suite = ElementTree.Element(
        "testsuite",
        name="archrepair",
        tests=str(len(gates)),
        failures=str(sum(gate["state"] in FAILURES for gate in gates)),
        errors="0",
        skipped=str(sum(gate["state"] == SKIPPED for gate in gates)),
        time=str(report["seconds"]["total"]),
    )
    properties = ElementTree.SubElement(suite, "properties")
    digests = [f"/data/splits/{escaped(role)}/digest" for role in report["data"]["splits"]]
    for pointer in (*PROPERTIES, *digests):
        name = pointer.removeprefix("/").replace("/", ".")
        ElementTree.SubElement(properties, "property", name=name, value=printable(str(value_at(report, pointer))))
    for gate in gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname="archrepair.gates", name=printable(gate["expression"]), time="0"
        )
        reason = printable(gate["reason"])
        if gate["state"] in FAILURES:
            ElementTree.SubElement(case, "failure", type=gate["state"], message=reason).text = reason
        elif gate["state"] == SKIPPED:
            ElementTree.SubElement(case, "skipped", message=reason)
        else:
            ElementTree.SubElement(case, "system-out").text = reason
    suites = ElementTree.Element("testsuites", {name: suite.attrib[name] for name in ("tests", "failures", "errors")})
    suites.append(suite)
    ElementTree.indent(suites, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def printable(text: str) -> str:
    """The text without what XML cannot hold: control characters and halves of surrogate pairs."""
    return "".join(letter if letter in "\t\n" or (letter.isprintable() or letter == " ") else "?" for letter in text)
