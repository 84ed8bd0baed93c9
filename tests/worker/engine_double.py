"""Speaks the engine's protocol and behaves as `spec["behave"]` says. Standard library only: it starts fast."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BEHAVE = b"behave:"


def say(kind, **fields):
    print(json.dumps({"type": kind, **fields}), flush=True)


def progress(phase, percent, message="working"):
    say("progress", phase=phase, percent=percent, message=message, step=1, total_steps=2)


def succeed(request):
    progress("ingesting", 0)
    print("a line of the log", file=sys.stderr)
    model = Path(request["model"]).read_bytes()
    data = b"".join(Path(path).read_bytes() for path in request["datasets"].values())
    Path(request["out_dir"], "repaired.pt").write_bytes(model + data)
    Path(request["out_dir"], "report.json").write_text("{}")
    progress("packaging", 100)
    say("resolved_spec", spec={"resolved": True})
    artifacts = [{"name": "repaired.pt", "kind": "model"}, {"name": "report.json", "kind": "report"}]
    say("result", result={"outcome": "repaired"}, verdict="pass", artifacts=artifacts)


def repair(request):
    """For jobs that came over HTTP, where a spec cannot say how to behave: the first data set may."""
    first = next(iter(request["datasets"].values()), None)
    content = Path(first).read_bytes() if first else b""
    globals()[content.removeprefix(BEHAVE).decode() if content.startswith(BEHAVE) else "succeed"](request)


localize = evaluate = repair


def log(text):
    print(text, file=sys.stderr, flush=True)


def log_and_wait(request):
    log("the first words")
    progress("repairing", 50, message=str(os.getpid()))
    while not Path(request["work_dir"], "more").exists():
        time.sleep(0.02)
    log("\n".join(f"{number} " + 100 * "x" for number in range(10_000)))
    time.sleep(600)


def log_and_crash(request):
    log('Traceback (most recent call last):\n  File "ours.py", line 1, in secret_name\nValueError: their fault')
    say("error", code="platform.engine_failed", detail="the engine stopped with an unexpected ValueError")


def look_and_wait(request):
    look(request)
    time.sleep(600)


def look(request, **changes):
    block = {"name": "layer1.0", "kind": "BasicBlock", "level": "block", "stage": "layer1", "depth": 1}
    block |= {"input_shape": [3, 8, 8], "output_shape": [3, 8, 8], "num_params": 9, "macs": 64, "latency_share": 0.5}
    stage = block | {"name": "layer1", "kind": "Sequential", "level": "stage", "stage": None, "depth": 0}
    found = {"format": "torchscript", "num_parameters": 9, "input_shape": [3, 8, 8], "input_shape_source": "guessed"}
    say("model", **{**found, "blocks": [stage, block], "blocks_unknown": None, **changes})


def inspect(request):
    progress("ingesting", 0)
    look(request)
    say("result", result={"outcome": "inspected"}, verdict="not_evaluated", artifacts=[])


def ingest(request):
    (path,) = request["datasets"].values()
    facts = {"format": "npz", "num_samples": Path(path).stat().st_size, "image_shape": [8, 8, 1], "labelled": True}
    facts |= {"pixel_type": "uint8", "num_classes": 1, "classes": {"0": 3}, "content_sha256": "f" * 64}
    facts |= {"num_skipped": 0, "skipped": [], "duplicates": {"exact": 0, "near": 0, "compared": 0}}
    say("dataset", facts=facts)
    say("result", result={"outcome": "ingested"}, verdict="not_evaluated", artifacts=[])


def look_on_data(request):
    look(request, input_shape=[3, 9, 9], input_shape_source="data")
    succeed(request)


def judge(request, verdict):
    reports = {"report.html": "report_html", "report.json": "report", "report.md": "report_md"}
    for name in ("repaired.pt", *reports):
        Path(request["out_dir"], name).write_text(f"{{}} {verdict}")
    Path(request["out_dir"], "junit.xml").write_text("<testsuites/>")
    artifacts = [{"name": name, "kind": kind} for name, kind in reports.items()]
    artifacts += [{"name": "repaired.pt", "kind": "model"}, {"name": "junit.xml", "kind": "report_junit"}]
    gate = {"expression": "test.accuracy >= before + 0.01", "state": verdict, "reason": f"it is {verdict}: 1, 2"}
    gates = [{**gate, "observed": 0.5, "limit": 0.6, "interval": [0.4, 0.6]}]
    result = {"outcome": "repaired", "reason": "as asked", "gates": gates}
    say("result", result=result, verdict=verdict, artifacts=artifacts)


def meet_the_gates(request):
    judge(request, "pass")


def fail_a_gate(request):
    judge(request, "fail")


def leave_it_open(request):
    judge(request, "inconclusive")


def refuse(request):
    progress("localizing", 40)
    print("\n".join(f"line {number}" for number in range(100)), file=sys.stderr)
    say("error", code="model.frozen_graph", detail="frozen", hint="unfreeze", category="user", phase="localizing")


def refuse_the_data(request):
    say("error", code="model.fails_on_inputs", detail="wrong shape", hint="resize", category="user")


def repair_until_asked(request):
    asked = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
    progress(request["spec"].get("phase", "repairing"), 50, message=str(os.getpid()))
    while not asked:
        time.sleep(0.02)
    Path(request["out_dir"], "repaired.pt").write_bytes(b"THE BEST SO FAR")
    progress("packaging", 99)
    result = {"outcome": "repaired", "completion": request["spec"].get("completion", "partial")}
    say("result", result=result, verdict="pass", artifacts=[{"name": "repaired.pt", "kind": "model"}])


def finish_badly(request):
    signal.signal(signal.SIGUSR1, lambda *_: say("error", code="platform.engine_failed", detail="broken"))
    progress("repairing", 50, message=str(os.getpid()))
    time.sleep(600)


def never_finish(request):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    progress("repairing", 50, message=str(os.getpid()))
    time.sleep(600)


def run_for_ever(request):
    progress("repairing", 50, message=str(os.getpid()))
    time.sleep(600)


def run_for_ever_with_a_stubborn_child(request):
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-S", "-c", ignore], stdout=subprocess.PIPE)
    child.stdout.readline()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    progress("repairing", 50, message=f"{os.getpid()} {child.pid}")
    time.sleep(600)


def be_killed(request):
    progress("repairing", 50)
    os.kill(os.getpid(), signal.SIGKILL)


def crash(request):
    print("about to crash", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(request):
    sys.exit(3)


def talk_nonsense(request):
    print("Hello from a library", flush=True)
    time.sleep(600)


def name_a_path_outside(request):
    say("result", result={}, verdict="pass", artifacts=[{"name": "../../etc/passwd", "kind": "model"}])


def publish_a_link(request):
    os.symlink("/etc/passwd", Path(request["out_dir"], "repaired.pt"))
    say("result", result={}, verdict="pass", artifacts=[{"name": "repaired.pt", "kind": "model"}])


def continue_or_wait(request):
    """The first attempt leaves a checkpoint and hangs; one that finds it is done."""
    checkpoints = Path(request["work_dir"], "checkpoints")
    if (checkpoints / "state").is_file():
        request["model"] = str(checkpoints / "state")
        succeed(request)
        return
    checkpoints.mkdir()
    (checkpoints / "state").write_text("half done;")
    (checkpoints / "link").symlink_to("/etc/passwd")
    progress("repairing", 50, message=str(os.getpid()))
    time.sleep(600)


def wait_for_a_file(request):
    progress("repairing", 50, message=str(os.getpid()))
    while not Path(request["spec"]["file"]).exists():
        time.sleep(0.02)
    succeed(request)


def run_out_of_memory(request):
    say("error", code="worker.out_of_memory", detail="the engine ran out of memory", hint="use a smaller model")


def chatter(request):
    for number in range(200):
        progress("repairing", number / 2)
        time.sleep(0.005)
    succeed(request)


if __name__ == "__main__":
    say("ready")
    line = sys.stdin.readline()
    if line:
        request = json.loads(line)
        spec = request["spec"]
        globals()[spec.get("behave") or spec["kind"]](request)
