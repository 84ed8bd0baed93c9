"""Random damage to an archive that a random byte would never find: below the checksums, in the grammar of each part."""

import ast
import pickletools
import random
import struct
from collections.abc import Callable
from random import Random

from archrepair_core.ingest.allowlist import ATEN_OPERATORS
from tests.archrepair_core.hostile.archives import archive

_NUMBERS = (-(1 << 63), -(1 << 31), -2, -1, 0, 1, 2, 3, 7, 64, 255, 1 << 16, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62)
_OPERATORS = sorted(ATEN_OPERATORS)
Records = dict[str, bytes]


def mutated(records: Records, seed: int) -> bytes:
    """The archive with one to three mutations, the same for the same seed."""
    chance = random.Random(seed)
    changed = dict(records)
    for _ in range(chance.randint(1, 3)):
        chance.choice(_MUTATIONS)(changed, chance)
    data = archive(changed)
    return damaged(data, chance) if chance.random() < 0.1 else data


def damaged(data: bytes, chance: Random) -> bytes:
    """Bytes changed, left out, put in twice, or moved."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice((1, 1, 2, 4, 8, 50)))
        piece = bytes(content[start:end])
        content[start:end] = chance.choice((chance.randbytes(len(piece)), b"", piece * 2, piece[::-1]))
    return bytes(content)


def _damage_record(records: Records, chance: Random) -> None:
    name = chance.choice(sorted(records))
    records[name] = damaged(records[name], chance)


def _swap_records(records: Records, chance: Random) -> None:
    first, second = chance.choices(sorted(records), k=2)
    records[first], records[second] = records[second], records[first]


def _rename_record(records: Records, chance: Random) -> None:
    name = chance.choice(sorted(records))
    records[chance.choice((f"{name}x", f"extra/{name}", name.upper(), "data/2", name))] = records.pop(name)


def _mutate_pickle(records: Records, chance: Random) -> None:
    name = chance.choice([name for name in ("data.pkl", "constants.pkl") if name in records] or sorted(records))
    records[name] = mutated_pickle(records[name], chance)


def mutated_pickle(data: bytes, chance: Random) -> bytes:
    """The same opcodes, some left out, repeated, exchanged or with another argument."""
    try:
        starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    except Exception:  # noqa: BLE001  an earlier mutation may have left anything
        return damaged(data, chance)
    pieces = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(chance.randint(1, 3)):
        here, there = chance.randrange(len(pieces)), chance.randrange(len(pieces))
        number = chance.choice(_NUMBERS)
        changes: list[list[bytes]] = [
            [],
            [pieces[here]] * 2,
            [pieces[there]],
            [b"\x8a\x08" + struct.pack("<q", max(-(1 << 63), min(number, (1 << 63) - 1)))],
            [bytes([chance.randrange(256)])],
            [b"N", chance.choice((b"\x85", b"\x86", b"R", b"b", b"Q", b"e", b"s", b"u", b"t", b"("))],
        ]
        pieces[here : here + 1] = chance.choice(changes)
        pieces = pieces or [b"."]
    return b"".join(pieces)


def _mutate_code(records: Records, chance: Random) -> None:
    names = [name for name in sorted(records) if name.endswith(".py")]
    if names:
        name = chance.choice(names)
        records[name] = mutated_code(records[name], chance)


def mutated_code(data: bytes, chance: Random) -> bytes:
    """The same program with another operator, constant or name, or with a statement more, less or elsewhere."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return damaged(data, chance)
    nodes = list(ast.walk(tree))
    for _ in range(chance.randint(1, 2)):
        _change_node(chance.choice(nodes), chance)
    try:
        return (ast.unparse(tree) + "\n").encode()
    except (ValueError, AttributeError, RecursionError, TypeError):  # a tree that no source text has
        return damaged(data, chance)


def _change_node(node: ast.AST, chance: Random) -> None:
    match node:
        case ast.Constant(value=bool() | None):
            node.value = chance.choice((True, False, None, 0))
        case ast.Constant(value=int() | float()):
            node.value = chance.choice((*_NUMBERS, 0.5, float("inf"), "x", None))
        case ast.Constant():
            node.value = chance.choice(("x", "", 1, None, "é", "\\", "a'b\"c\n"))
        case ast.Attribute():
            node.attr = chance.choice((chance.choice(_OPERATORS), "weight", "training", "forward", "__class__", "T"))
        case ast.Name():
            node.id = chance.choice(("x", "weight", "self", "torch", "ops", "int", "List", "Tensor", "inf", "exec"))
        case ast.Call(args=arguments):
            _change_list(arguments, chance)
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) if chance.random() < 0.2:
            node.name = chance.choice((f"{name}_", "forward", "Net", "__init__", "__setstate__"))
        case ast.FunctionDef(body=body) | ast.ClassDef(body=body) | ast.Module(body=body) | ast.If(body=body):
            _change_list(body, chance)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            _change_list(items, chance)


def _change_list(items: list, chance: Random) -> None:
    if not items:
        return
    here, there = chance.randrange(len(items)), chance.randrange(len(items))
    match chance.randrange(4):
        case 0:
            del items[here]
        case 1:
            items.insert(there, items[here])
        case 2:
            items[here], items[there] = items[there], items[here]
        case _:
            items[here] = items[there]


_MUTATIONS: tuple[Callable[[Records, Random], None], ...] = (
    *(_mutate_code,) * 5,
    *(_mutate_pickle,) * 3,
    _damage_record,
    _swap_records,
    _rename_record,
)
