import json
import subprocess
import sys

from archrepair_core.events import finite


def test_only_events_reach_the_original_stdout_whoever_prints():
    code = (
        "import os\n"
        "from archrepair_core.events import open_event_pipe\n"
        "print('before')\n"
        "events = open_event_pipe()\n"
        "print('from python')\n"
        "os.write(1, b'from a library\\n')\n"
        "os.system('echo from a child')\n"
        "events.send('progress', percent=float('nan'), message='a\\nb')\n"
    )
    done = subprocess.run((sys.executable, "-P", "-c", code), capture_output=True, text=True, check=True)
    before, event = done.stdout.splitlines()
    assert before == "before"
    assert json.loads(event) == {"type": "progress", "percent": None, "message": "a\nb"}
    assert set(done.stderr.splitlines()) == {"from python", "from a library", "from a child"}


def test_numbers_json_does_not_have_become_null_at_every_depth():
    value = {"a": [1.5, float("inf"), {"b": (float("-inf"), "x", None, 2)}]}
    assert finite(value) == {"a": [1.5, None, {"b": [None, "x", None, 2]}]}
