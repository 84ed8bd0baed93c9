"""Turn generated definitions into live functions and classes whose source Python and TorchScript can look up again."""

import ast
import linecache
import sys
import types
from collections.abc import Mapping
from typing import Any

from archrepair_core.errors import ModelError

_HEADER = ast.parse(
    "import math\nimport warnings\nfrom typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union\n\n"
    "import torch\nfrom torch import Tensor\n"
).body


def define(
    definition: ast.FunctionDef | ast.ClassDef, module_name: str, qualified_name: str, namespace: Mapping[str, Any]
) -> Any:
    """The function or class, living in a module of its own named `module_name`.

    `inspect.getsource` finds it through linecache, and `torch.jit.script` gives it back `qualified_name`. Raises
    ModelError `too_deeply_nested` for what Python, unlike TorchScript, has a limit for.
    """
    filename = f"<{module_name}>"
    try:
        tree = ast.fix_missing_locations(ast.Module([*_HEADER, definition], []))
        source = ast.unparse(tree) + "\n"
        code = compile(source, filename, "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        detail = f"{qualified_name} cannot be written as Python: {error.args[0] if error.args else error!r}."
        hint = "Nest at most 20 loops; move the inner ones to functions."
        raise ModelError("too_deeply_nested", detail, hint=hint) from error
    module = types.ModuleType(module_name)
    module.__file__ = filename
    module.__dict__.update(namespace)
    # The lines must be there before the definition runs: a torch.jit.export decorator may ask for them.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    sys.modules[module_name] = module
    # The text was printed from an ast of our own making; the archive contributes literals and checked identifiers only.
    exec(code, module.__dict__)  # noqa: S102
    defined = module.__dict__[definition.name]
    defined._jit_override_qualname = qualified_name
    return defined
