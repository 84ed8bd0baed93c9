"""How much memory reading a dataset takes, in a process of its own."""

import subprocess
import sys
from pathlib import Path

MEASURE = """
import sys
from pathlib import Path
from archrepair_core.data.formats import load_dataset
from tests.peak_memory import peak_kib
before = peak_kib()
path = Path(sys.argv[1])
load_dataset("upload:x", {"upload:x": path}, name="x", work_dir=path.parent)
print((peak_kib() - before) // 1024)
"""


def growth_of_loading_mib(file: Path) -> int:
    """By how many MiB the peak grows while the file is loaded."""
    run = subprocess.run([sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True)
    return int(run.stdout)
