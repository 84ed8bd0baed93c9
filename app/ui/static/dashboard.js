// What all pages share: parts that refresh themselves, buttons that change something, and what went wrong.
"use strict";

const TICK_MS = 3000;
// Several events come at once; a page is asked for anew once for all of them.
const NEWS_MS = 700;
const AGAIN_MS = 3000;

const trouble = document.getElementById("trouble");
let troubleTimer;

function say(text) {
  trouble.textContent = text;
  trouble.hidden = false;
  clearTimeout(troubleTimer);
  troubleTimer = setTimeout(() => { trouble.hidden = true; }, 10000);
}

// A refusal in the words of its problem document.
async function explained(answer) {
  try {
    const problem = await answer.json();
    return [problem.detail, problem.hint].filter(Boolean).join(" ");
  } catch {
    return `The service answered ${answer.status}.`;
  }
}

function toSignIn() {
  location.assign(`/ui/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
}

setInterval(() => {
  if (document.visibilityState === "visible") document.body.dispatchEvent(new Event("tick"));
}, TICK_MS);

document.addEventListener("htmx:error", () => say("The service does not answer; trying again."));

// ---- a job that runs: its events ask for the page again, and for the log

function follow() {
  const live = document.getElementById("live");
  if (!live || !live.dataset.events || live.dataset.done === "true") return;
  let waiting = null;
  const news = () => {
    waiting ??= setTimeout(() => {
      waiting = null;
      document.body.dispatchEvent(new Event("news"));
      refreshLog();
    }, NEWS_MS);
  };
  const source = new EventSource(live.dataset.events);
  const types = ["queued", "started", "phase", "progress", "localized", "resolved_spec", "cancelling", "requeued",
    "succeeded", "failed", "cancelled"];
  for (const type of types) source.addEventListener(`job.${type}`, news);
  source.onerror = () => {
    // It comes back by itself, but for an answer that was no stream: then the job is over, or nobody is signed in.
    news();
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, AGAIN_MS);
  };
  addEventListener("pagehide", () => source.close(), { once: true });
}

async function refreshLog() {
  const log = document.getElementById("log");
  if (!log) return;
  const answer = await fetch(log.dataset.log).catch(() => null);
  if (!answer || !answer.ok) return;
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.textContent = await answer.text(); // as text: a stranger's model may have written it
  if (atEnd) log.scrollTop = log.scrollHeight;
}

// ---- buttons

async function post(button) {
  if (button.dataset.confirm && !confirm(button.dataset.confirm)) return;
  button.disabled = true;
  const answer = await fetch(button.dataset.post, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: button.dataset.body || "{}",
  }).catch(() => null);
  button.disabled = false;
  if (!answer) return say("The service does not answer.");
  if (answer.status === 401) return toSignIn();
  if (!answer.ok) return say(await explained(answer));
  if (button.dataset.then) location.assign(button.dataset.then + (await answer.json()).id);
  else document.body.dispatchEvent(new Event("news"));
}

async function copy(button) {
  const text = document.getElementById(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch { // without TLS browsers have no clipboard for pages
    getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    say("Selected: copy it with your keyboard.");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.post) post(button);
  else if (button?.dataset.copy) copy(button);
});

// A proxy that speaks TLS, or has another name, is known to the browser alone.
for (const text of document.querySelectorAll("[data-base]")) {
  text.textContent = text.textContent.replaceAll(text.dataset.base, location.origin);
}
const log = document.getElementById("log");
if (log) log.scrollTop = log.scrollHeight;
follow();
