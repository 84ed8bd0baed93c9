"""The real worker with the engine double. The pool process imports this file again, so it finds the double too."""

import sys
from functools import partial
from pathlib import Path

import worker.tasks
from worker.celery_app import main
from worker.engine_process import EngineProcess

DOUBLE = (sys.executable, "-S", "-E", str(Path(__file__).with_name("engine_double.py")))
worker.tasks.EngineProcess = partial(EngineProcess, command=DOUBLE)

if __name__ == "__main__":
    main()
