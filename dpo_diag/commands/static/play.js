// Model text only ever becomes textContent.
const root = element.querySelector(".pl");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const GONE = "The server does not answer. Start dpo-diag play again and open its new address.";
class Told extends Error {}
const TWICE = Math.log(2), VISIBLE = 0.1, FULL = 2;
let names = [], being = [], examples = [], busy = false, cards = [];

function add(parent, tag, text, css) {
  const child = document.createElement(tag);
  if (text !== undefined) child.textContent = text;
  if (css) child.className = css;
  parent.append(child);
  return child;
}

function tell(text, bad) {
  part("status").textContent = text;
  part("status").classList.toggle("pl-bad", Boolean(bad));
}

const percent = (logp) => {
  if (logp === null || logp === undefined) return "?";
  const p = 100 * Math.exp(logp);
  return p >= 99.95 ? "100 %" : p >= 10 ? `${p.toFixed(0)} %` : p >= 0.1 ? `${p.toFixed(1)} %` : `${p.toExponential(0)} %`;
};
const known = (x) => x !== null && x !== undefined;
const nats = (x) => (known(x) ? x.toFixed(2) : "?");
const readable = (text) => JSON.stringify(text);

// What is asked, and for how long: a model that is still being loaded takes a while.
function waiting(what) {
  const since = performance.now();
  const show = () => {
    const seconds = Math.floor((performance.now() - since) / 1000);
    tell(what() + (seconds >= 2 ? ` ${seconds} s` : ""));
  };
  show();
  const timer = setInterval(show, 500);
  return () => clearInterval(timer);
}

let loading = null;
function memory(state) {
  loading = state.loading;
  const m = state.memory, gb = (x) => (x / 1e9 >= 0.1 ? `${(x / 1e9).toFixed(1)} GB` : `${(x / 1e6).toFixed(1)} MB`);
  part("memory").textContent = `Loaded: ${m.loaded.join(", ") || "nothing yet"} (${gb(m.bytes)} of at most ${gb(m.budget)})` +
    (loading ? `; loading ${loading}…` : "");
}

async function follow() {
  try {
    while (loading) {
      await new Promise((done) => setTimeout(done, 500));
      memory(await callServer("loaded", {}));
    }
  } catch {}
}

function describe(token) {
  const words = [`${token.end ? "end of the answer" : readable(token.text)}: ${percent(token.logp)}`];
  if (known(token.base) && known(token.logp)) {
    const change = token.logp - token.base, factor = Math.exp(Math.abs(change));
    const times = factor < 1.005 ? "as likely" : `${factor.toPrecision(3)} times ${change > 0 ? "likelier" : "less likely"}`;
    words.push(`under ${names[0]} ${percent(token.base)} (${times}, ${change >= 0 ? "+" : ""}${nats(change)} nats)`);
  }
  if (token.n > 1) words.push(`${token.n} tokens together`);
  words.push("likeliest there: " + token.others.map((o) => `${readable(o.text)} ${percent(o.logp)}`).join(", "));
  return words.join("; ");
}

// A token's text, and at its last letter the arrow and the number, which no line break takes from it.
function fillToken(span, token, arrow) {
  const body = token.text.trimEnd(), blanks = token.text.slice(body.length), tail = body.match(/\S{0,8}$/)[0];
  span.append(token.end ? "" : body.slice(0, body.length - tail.length));
  const kept = add(span, "span", undefined, "pl-kept");
  if (token.end) add(kept, "span", "■ end", "pl-end");
  else if (body) kept.append(tail);
  else add(kept, "span", blanks.includes("\n") ? "↵" : "␣", "pl-number");
  if (arrow) add(kept, "span", arrow, "pl-arrow");
  add(kept, "span", percent(token.logp), "pl-number");
  add(span, "wbr");
  if (!token.end) span.append(blanks);
}

function showToken(box, token, column, parts) {
  const span = add(box, "span", undefined, "pl-token");
  if (parts) span.classList.add("pl-parts");
  const change = column > 0 && known(token.base) && known(token.logp) ? token.logp - token.base : 0;
  if (Math.abs(change) >= VISIBLE) {
    span.classList.add(change > 0 ? "pl-up" : "pl-down");
    span.style.setProperty("--s", Math.min(1, Math.abs(change) / FULL));
    span.dataset.change = change.toFixed(3);
  }
  fillToken(span, token, Math.abs(change) < TWICE ? "" : change > 0 ? "▲" : "▼");
  span.title = describe(token);
  span.addEventListener("mouseenter", () => { part("detail").textContent = span.title; });
  span.addEventListener("click", () => {
    for (const other of root.querySelectorAll(".pl-picked")) other.classList.remove("pl-picked");
    span.classList.add("pl-picked");
    part("detail").textContent = span.title;
  });
}

function heading(card, column) {
  const title = add(card, "h2", names[column]);
  if (being[column]) add(title, "span", `, ${being[column]}`, "pl-soft");
}

function showAnswer(answer, column, base) {
  const card = cards[column];
  card.replaceChildren();
  heading(card, column);
  const facts = [`${answer.n_tokens} tokens`, answer.finish_reason === "stop" ? "ended by itself" : "cut off by the limit",
    `log-prob ${nats(answer.sum_logp)}`];
  if (column > 0 && known(answer.base_sum_logp)) facts.push(`under ${names[0]} ${nats(answer.base_sum_logp)}`);
  else if (column > 0 && base) facts.push(`${names[0]} has another vocabulary: no comparison`);
  add(card, "div", facts.join(", "), "pl-soft");
  const box = add(card, "div", undefined, "pl-text");
  let parted = column === 0 || !base;
  answer.tokens.forEach((token, i) => {
    const differs = !parted && (base.tokens[i] === undefined || base.tokens[i].text !== token.text);
    showToken(box, token, column, differs);
    parted = parted || differs;
  });
  if (column > 0 && base) {
    const same = !parted && base.tokens.length === answer.tokens.length;
    card.dataset.same = same;
    if (same) add(card.children[1], "span", `, the same answer as ${names[0]}`);
  }
}

async function ask() {
  const prompt = part("prompt").value;
  if (busy) return;
  if (!prompt.trim()) { tell("Type a prompt first.", true); return; }
  busy = true;
  part("go").disabled = true;
  root.setAttribute("aria-busy", "true");
  root.dataset.asked = "";
  part("detail").textContent = "";
  // A prompt of the run's stands as its models saw it, chat template included.
  const call = { prompt, raw: examples.includes(prompt) };
  part("answers").replaceChildren();
  cards = names.map((_, column) => {
    const card = add(part("answers"), "article", undefined, "pl-answer");
    heading(card, column);
    add(card, "div", "waiting…", "pl-soft");
    return card;
  });
  try {
    for (let i = 0; i < names.length; i++) {
      const asking = `Asking ${names[i]} (${i + 1} of ${names.length})…`;
      const end = waiting(() => (loading ? `Loading ${loading}, then asking ${names[i]}…` : asking));
      const state = await callServer("ask", { ...call, index: i }).finally(end);
      if (state.error) throw new Told(state.error);
      showAnswer(state.answer, i, null);
      memory(state);
    }
    const end = waiting(() => `Comparing with ${names[0]}…`);
    const state = await callServer("compare", call).finally(end);
    if (state.error) throw new Told(state.error);
    state.answers.forEach((answer, i) => showAnswer(answer, i, state.answers[0]));
    memory(state);
    part("legend").hidden = names.length < 2;
    tell("");
    root.dataset.asked = "yes";
  } catch (error) {
    tell(error instanceof Told ? error.message : GONE, true);
    root.dataset.asked = "failed";
  } finally {
    busy = false;
    part("go").disabled = false;
    root.setAttribute("aria-busy", "false");
  }
}

part("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
part("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); }
});
part("prompt").addEventListener("input", () => {
  try { sessionStorage.setItem("dpo-diag-prompt", part("prompt").value); } catch {}
});
part("examples").addEventListener("change", () => {
  const i = part("examples").value;
  if (i !== "") { part("prompt").value = examples[Number(i)]; part("prompt").dispatchEvent(new Event("input")); part("prompt").focus(); }
});
part("numbers").addEventListener("change", () => root.classList.toggle("pl-with-numbers", part("numbers").checked));

callServer("start", {}).then((state) => {
  names = state.names;
  being = state.is;
  examples = state.examples;
  part("run").textContent = `${state.run}: ${names.join(", ")}; greedy, up to ${state.max_new_tokens} tokens`;
  part("base").textContent = names[0];
  examples.forEach((text, i) => {
    const option = add(part("examples"), "option", text.length > 90 ? text.slice(0, 90) + "…" : text);
    option.value = i;
  });
  part("examples").hidden = !examples.length;
  memory(state);
  follow();
  tell("");
  try { part("prompt").value = sessionStorage.getItem("dpo-diag-prompt") ?? ""; } catch {}
  root.setAttribute("aria-busy", "false");
  root.dataset.ready = "yes";
  part("prompt").focus();
}).catch(() => tell(GONE, true));
