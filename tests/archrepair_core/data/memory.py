"""How much memory reading a dataset takes, in a process of its own."""

import subprocess
import sys
from pathlib import Path

MEASURE = """
import sys
from pathlib import Path
from archrepair_core.data.formats import load_dataset
from tests.resident_memory import resident_bytes
before = resident_bytes("VmHWM")
path = Path(sys.argv[1])
load_dataset("upload:x", {"upload:x": path}, name="x", work_dir=path.parent)
print((resident_bytes("VmHWM") - before) // 2**20)
"""


def growth_of_loading_mib(file: Path) -> int:
    """By how many MiB the peak grows while the file is loaded."""
    run = subprocess.run([sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True)
    return int(run.stdout)
