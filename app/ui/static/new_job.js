// The form of a new job. The JSON is the truth: inputs write into it, and read from it what somebody wrote there.
import { ask, Refused, send } from "./upload.js";

const form = document.getElementById("new-job");
const spec = document.getElementById("spec");
const outcome = document.getElementById("outcome");
const inputs = [...form.querySelectorAll("[data-path]")];
const files = new Set();
let key = newKey();

// One key for one wish: sent again, it starts no second job.
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- the spec and its form

function read() {
  const said = JSON.parse(spec.value || "{}");
  if (said === null || typeof said !== "object" || Array.isArray(said)) throw new SyntaxError("It is no JSON object.");
  return said;
}

function valueAt(value, path) {
  return path.split(".").reduce((place, name) => place?.[name], value);
}

function put(path, value) {
  let said;
  try { said = read(); } catch { return; } // half a JSON stays as somebody is writing it
  const names = path.split(".");
  const last = names.pop();
  let place = said;
  for (const name of names) place = place[name] ??= {};
  if (value === undefined) delete place[last];
  else place[last] = value;
  for (let depth = names.length; depth > 0; depth -= 1) { // what is empty says nothing
    const parent = valueAt(said, names.slice(0, depth - 1).join(".")) ?? said;
    const owner = depth === 1 ? said : parent;
    if (Object.keys(owner[names[depth - 1]]).length === 0) delete owner[names[depth - 1]];
  }
  spec.value = JSON.stringify(said, null, 2);
}

function valueOf(input) {
  if (input.dataset.kind === "switch") {
    return input.checked === (input.dataset.default === "true") ? undefined : input.checked;
  }
  const text = input.value.trim();
  if (text === "") return undefined;
  if (input.dataset.kind === "lines") return text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (input.dataset.kind === "number" && Number.isFinite(Number(text))) return Number(text);
  return text;
}

function show() {
  let said;
  try { said = read(); } catch { return; }
  for (const input of inputs) {
    const value = valueAt(said, input.dataset.path);
    if (input.dataset.kind === "switch") input.checked = value ?? input.dataset.default === "true";
    else if (input.dataset.kind === "lines") input.value = Array.isArray(value) ? value.join("\n") : "";
    else if (typeof value !== "object") input.value = value ?? "";
  }
}

for (const input of inputs) {
  input.addEventListener(input.dataset.kind === "choice" || input.dataset.kind === "switch" ? "change" : "input", () => {
    put(input.dataset.path, valueOf(input));
  });
}
spec.addEventListener("input", show);

// ---- files

function guess(file) {
  const name = file.name.toLowerCase();
  if (/\.(pt|pt2|pth|ts|torchscript)$/.test(name)) return taken("model_id") ? "model.reference" : "model_id";
  const split = ["test", "validation", "replay", "regression", "repair"].find((word) => name.includes(word));
  return `datasets.${split ?? (taken("datasets.repair") ? "test" : "repair")}`;
}

function taken(path) {
  if ([...files].some((entry) => entry.role.value === path)) return true;
  try { return valueAt(read(), path) !== undefined; } catch { return false; }
}

function add(file) {
  const row = document.getElementById("file-row").content.cloneNode(true).firstElementChild;
  const [name, bar, status] = [row.querySelector(".name"), row.querySelector("progress"), row.querySelector(".hint")];
  const entry = { file, role: row.querySelector("select"), upload: null, model: null, gone: false, written: null };
  name.textContent = file.name;
  entry.role.value = guess(file);
  entry.role.setAttribute("aria-label", `What ${file.name} is`);
  bar.setAttribute("aria-label", `Upload of ${file.name}`);
  files.add(entry);
  document.getElementById("files").append(row);
  row.querySelector("button").addEventListener("click", () => {
    entry.gone = true;
    forget(entry);
    files.delete(entry);
    row.remove();
  });
  const settle = async () => {
    forget(entry);
    if (entry.upload === null) return;
    status.textContent = entry.role.value === "model_id" ? "Registering the model …" : "Ready.";
    try {
      await write(entry);
      if (!entry.gone) status.textContent = "Ready.";
    } catch (error) {
      status.textContent = error.message;
      status.className = "wrong";
    }
  };
  entry.role.addEventListener("change", settle);
  entry.done = send(file, {
    onShare: (share) => {
      bar.value = share;
      status.textContent = `${Math.round(100 * share)} % of ${(file.size / 1024 ** 2).toFixed(1)} MiB`;
    },
    onTrouble: () => { status.textContent = "Interrupted; going on in a moment …"; },
    isGone: () => entry.gone,
  }).then((upload) => {
    entry.upload = upload.id;
    return settle();
  }).catch((error) => {
    status.textContent = error.message;
    status.className = "wrong";
  });
}

// Put the file's id where its role says. A model has to be registered for that, once.
async function write(entry) {
  const path = entry.role.value;
  let id = entry.upload;
  if (path === "model_id") {
    entry.model ??= ask("POST", "/models", { upload_id: entry.upload });
    id = (await entry.model).id;
  }
  if (entry.gone || path !== entry.role.value) return;
  put(path, id);
  entry.written = { path, id };
  show();
}

function forget(entry) {
  if (entry.written === null) return;
  const { path, id } = entry.written;
  entry.written = null;
  try { if (valueAt(read(), path) === id) put(path, undefined); } catch { return; }
  show();
}

document.getElementById("choose").addEventListener("change", (event) => {
  for (const file of event.target.files) add(file);
  event.target.value = "";
});
let depth = 0;
addEventListener("dragenter", (event) => {
  event.preventDefault();
  depth += 1;
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => {
  depth -= 1;
  if (depth <= 0) document.body.classList.remove("dropping");
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dropping");
  for (const file of event.dataTransfer.files) add(file);
});

// ---- validate and submit

function clear() {
  outcome.replaceChildren();
  for (const place of form.querySelectorAll("[data-wrong]")) place.hidden = true;
  for (const input of inputs) input.removeAttribute("aria-invalid");
  document.getElementById("spec-wrong").hidden = true;
}

function tell(text, kind) {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text;
  outcome.append(line);
}

// What is wrong, at the fields it is wrong in.
function complain(error) {
  if (error instanceof SyntaxError) {
    const place = document.getElementById("spec-wrong");
    place.textContent = `This is not JSON: ${error.message}`;
    place.hidden = false;
    spec.focus();
    return;
  }
  tell(error.message, "wrong");
  if (!(error instanceof Refused)) return;
  if (error.status === 401) tell("Nobody is signed in any more: sign in in another tab, then try again.", "wrong");
  let first = null;
  for (const { pointer, detail } of error.problem.errors ?? []) {
    const path = (pointer ?? "").replace(/^#?\//, "").replaceAll("/", ".").replace(/\.\d+$/, "");
    const place = form.querySelector(`[data-wrong="${CSS.escape(path)}"]`);
    const input = inputs.find((one) => one.dataset.path === path);
    if (!place || !input) continue;
    place.textContent = detail;
    place.hidden = false;
    input.setAttribute("aria-invalid", "true");
    input.closest("details")?.setAttribute("open", "");
    first ??= input;
  }
  first?.focus();
}

async function validated() {
  clear();
  await Promise.all([...files].map((entry) => entry.done));
  const said = read();
  await ask("POST", "/jobs?validate_only=true", said);
  return said;
}

async function act(button, action) {
  const buttons = form.querySelectorAll("#submit, #validate");
  for (const one of buttons) one.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    await action();
  } catch (error) {
    complain(error);
  } finally {
    for (const one of buttons) one.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

document.getElementById("validate").addEventListener("click", (event) => act(event.target, async () => {
  await validated();
  tell("The spec is valid.", "right");
}));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  act(document.getElementById("submit"), async () => {
    const said = await validated();
    const job = await ask("POST", "/jobs", said, { "Idempotency-Key": key });
    key = newKey();
    location.assign(`/ui/jobs/${job.id}`);
  });
});

for (const input of inputs) if (input.value && input.dataset.path === "model_id") put("model_id", input.value);
