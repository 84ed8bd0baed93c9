"""Pages of the site that are made of the code when it is built: the HTTP reference, the error codes, the recipes.

A hook of MkDocs (`mkdocs.yml`). Nothing of it is kept: the pages cannot fall behind what they describe.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from app.errors import PROBLEMS
from app.main import create_app

ROOT = Path(__file__).parents[2]
METHODS = ("get", "post", "put", "patch", "delete")
BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
          "minLength": "{} characters or more", "maxLength": "{} characters at most",
          "minItems": "{} items or more", "maxItems": "{} items at most"}  # fmt: skip
LANGUAGES = {".yml": "yaml", ".sh": "bash", ".py": "python", "": "groovy"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file holds."""
    document = create_app().openapi()
    pages = {
        "reference/http.md": http_page(document),
        "reference/objects.md": objects_page(document),
        "reference/errors.md": errors_page(),
        "recipes.md": recipes_page(ROOT / "examples"),
    }
    for path, lines in pages.items():
        files.append(File.generated(config, path, content="\n".join(lines) + "\n"))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Recipes lie beside docs/ for readers of the repository, and are a page of the site."""
    for folder in (ROOT / "examples").iterdir():
        markdown = markdown.replace(f"](../examples/{folder.name})", f"](recipes.md#{folder.name})")
    return markdown


def http_page(document: Mapping[str, Any]) -> Iterator[str]:
    """Every path and method, by what it is about."""
    by_tag = defaultdict(list)
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                by_tag[methods[method]["tags"][0]].append((method, path, methods[method]))
    yield f"# HTTP reference\n\n{document['info']['description']}\n"
    yield "Made of the service's own OpenAPI document, which every service has at `/openapi.json`, and to try it at"
    yield "`/docs`. What holds for all paths is in [the API](../api.md); refusals are [problems](errors.md).\n"
    for tag, operations in by_tag.items():
        yield f"## {tag[0].upper()}{tag[1:]}\n"
        for method, path, operation in operations:
            yield from _operation(method, path, operation)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    name = operation["operationId"].partition("_v1_")[0]
    yield f"### `{method.upper()} {path}` {{ #{name} data-toc-label='{method.upper()} {path.removeprefix('/v1')}' }}\n"
    yield f"{operation.get('description', '')}\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | |\n|---|---|"
        for one in parameters:
            must = ", needed" if one["required"] and one["in"] != "path" else ""
            yield f"| `{one['name']}`<br>{one['in']}{must} | {_said(one)} |"
        yield ""
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"**Body**, `{media_type}`: {type_of(body.get('schema', {}))}\n"
        if properties := body.get("schema", {}).get("properties"):
            yield from _fields(properties, body["schema"].get("required", ()))
    answers = {code: answer for code, answer in operation["responses"].items() if not _is_refusal(answer)}
    for code, answer in answers.items():
        kinds = {media_type: type_of(body.get("schema", {})) for media_type, body in answer.get("content", {}).items()}
        shown = "; ".join(f"`{media_type}`: {kind}" for media_type, kind in kinds.items()) or "no body"
        words = answer["description"] if answer["description"] != "Successful Response" else ""
        yield f"**{code}** {words + ', ' if words else ''}{shown}\n"
    if refusals := sorted(operation["responses"].keys() - answers.keys()):
        yield f"Refused with {', '.join(refusals)}.\n"


def _is_refusal(answer: Mapping[str, Any]) -> bool:
    return "application/problem+json" in answer.get("content", {})


def objects_page(document: Mapping[str, Any]) -> Iterator[str]:
    """Every schema with its fields."""
    yield "# Objects\n\nWhat the [paths](http.md) take and give. Answers may grow fields, and enums values.\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f"## {name} {{ #{name.lower()} }}\n\n{schema.get('description', '')}\n"
        if "properties" in schema:
            yield from _fields(schema["properties"], schema.get("required", ()))
        else:
            yield f"{type_of(schema)}\n"


def _fields(properties: Mapping[str, Any], required: Iterable[str]) -> Iterator[str]:
    yield "| field | |\n|---|---|"
    for name, schema in properties.items():
        must = "<br>needed" if name in required else ""
        yield f"| `{name}`{must} | {_said(schema)} |"
    yield ""


def type_of(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in words; other schemas by their name, as links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](objects.md#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(type_of(one) for one in schema[union]))
    if schema.get("type") == "array":
        return _bounded(f"list of {type_of(schema.get('items', {}))}", schema)
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_of(schema['additionalProperties'])}"
    kind = schema.get("type", "anything")
    return _bounded(str(schema.get("format", kind)) if kind == "string" else str(kind), schema)


def _bounded(words: str, schema: Mapping[str, Any]) -> str:
    return ", ".join([words, *(text.format(schema[bound]) for bound, text in BOUNDS.items() if bound in schema)])


def _said(described: Mapping[str, Any]) -> str:
    """What it is, what it means and what it is when it is not given, as a cell of a table."""
    schema = described.get("schema", described)
    default = schema.get("default")
    told = f"Default: `{default}`." if default not in (None, [], {}, "") else ""
    words = " ".join(filter(None, (f"{type_of(schema)}.", described.get("description", ""), told)))
    return " ".join(words.split()).replace("|", "\\|")


def errors_page() -> Iterator[str]:
    """Every code of a problem."""
    yield "# Error codes\n"
    yield "A refusal is a problem document (RFC 9457): `code` is for programs, `detail` and `hint` for people,"
    yield "`errors[].pointer` leads to the place in the body. The SDK has [a class](python.md#errors) per status.\n"
    yield "| code | status | what | worth trying again |\n|---|---|---|---|"
    for code, kind in PROBLEMS.items():
        yield f"| `{code}` | {kind.status} | {kind.title} | {'yes' if kind.retryable else ''} |"


def recipes_page(examples: Path) -> Iterator[str]:
    """The files of examples/, each in full."""
    yield "# Recipes for pipelines\n"
    yield "What they do is in [CI](ci.md). Tests run all of their shell against a live service. The Python program"
    yield "checks [a certificate](repair.md#certificates).\n"
    for folder in sorted(examples.iterdir()):
        yield f"## {folder.name} {{ #{folder.name} }}\n"
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            yield f"`examples/{folder.name}/{file.name}`\n"
            yield f"````{LANGUAGES[file.suffix]}\n{file.read_text().rstrip()}\n````\n"
