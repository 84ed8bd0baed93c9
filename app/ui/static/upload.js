// A file in parts, in any order and again after a failure: what has arrived is asked for, and only the rest is sent.

const TRIES = 8;
const LONGEST_PAUSE_MS = 15000;
const PARALLEL = 2;

export class Refused extends Error {
  constructor(problem, status) {
    super([problem.detail, problem.hint].filter(Boolean).join(" ") || `The service answered ${status}.`);
    this.problem = problem;
    this.status = status;
  }
}

// JSON in, JSON out. Throws Refused with the problem document, or a TypeError where nobody answers.
export async function ask(method, path, body, headers = {}) {
  const isJson = body !== undefined && !(body instanceof Blob);
  const answer = await fetch(`/ui/api${path}`, {
    method,
    headers: { ...(isJson ? { "Content-Type": "application/json" } : {}), ...headers },
    body: isJson ? JSON.stringify(body) : body,
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(told, answer.status);
  return told;
}

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

async function patiently(attempt, onTrouble) {
  for (let number = 1; ; number += 1) {
    try {
      return await attempt();
    } catch (error) {
      const isLasting = error instanceof Refused && !error.problem.retryable && error.status < 500;
      if (isLasting || number === TRIES || error.name === "AbortError") throw error;
      onTrouble(error);
      await pause(Math.min(LONGEST_PAUSE_MS, 500 * 2 ** number));
    }
  }
}

// Only https and localhost give pages a digest; elsewhere TCP has to do.
async function digestOf(part) {
  if (!crypto.subtle) return {};
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await part.arrayBuffer()));
  return { "Content-Digest": `sha-256=:${btoa(String.fromCharCode(...digest))}:` };
}

const memory = (file) => `upload:${file.name}:${file.size}:${file.lastModified}`;

// An upload of the same file that was broken off, in this tab or before the page was loaded again; else a new one.
async function opened(file) {
  const known = sessionStorage.getItem(memory(file));
  if (known) {
    const upload = await ask("GET", `/uploads/${known}`).catch(() => null);
    if (upload && ["open", "completed"].includes(upload.state)) return upload;
  }
  const upload = await ask("POST", "/uploads", { filename: file.name, size_bytes: file.size });
  sessionStorage.setItem(memory(file), upload.id);
  return upload;
}

// The completed upload. `onShare` hears how much has arrived, 0 to 1; `isGone` says that nobody wants it any more.
export async function send(file, { onShare, onTrouble, isGone }) {
  let upload = await patiently(() => opened(file), onTrouble);
  const arrived = new Set(upload.parts.map((part) => part.number));
  const missing = [];
  for (let number = 1; number <= upload.part_count; number += 1) if (!arrived.has(number)) missing.push(number);
  onShare(arrived.size / upload.part_count);
  const sendNext = async () => {
    for (let number = missing.shift(); number !== undefined && !isGone(); number = missing.shift()) {
      const part = file.slice((number - 1) * upload.part_bytes, number * upload.part_bytes);
      const digest = await digestOf(part);
      await patiently(() => ask("PUT", `/uploads/${upload.id}/parts/${number}`, part, digest), onTrouble);
      arrived.add(number);
      onShare(arrived.size / upload.part_count);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, sendNext));
  while (upload.state !== "completed" && !isGone()) {
    upload = await patiently(() => ask("POST", `/uploads/${upload.id}/complete`, {}), onTrouble);
  }
  return upload;
}
