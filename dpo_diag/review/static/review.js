// Model text only ever becomes textContent. Every call names the item that was on the screen when the key was pressed.
const root = element.querySelector(".rv");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const WHERE = [[], ["left"], ["right"], ["left", "right"]];
const WHERE_TEXT = { "": "–", left: "◀ left", right: "right ▶", "left,right": "◀ both ▶" };
let now = null, marks = {}, since = 0, busy = false;

function add(parent, tag, text, css) {
  const child = document.createElement(tag);
  if (text !== undefined) child.textContent = text;
  if (css) child.className = css;
  parent.append(child);
  return child;
}

function fill(box, pieces) {
  box.replaceChildren();
  for (const piece of pieces) add(box, "span", piece.text, piece.differs ? "rv-differs" : "");
  if (!pieces.length) add(box, "span", "(empty answer)", "rv-empty");
  box.scrollTop = 0;
}

function draft() { return now && now.item ? `dpo-diag-draft-${now.reviewer}-${now.item.id}` : null; }
function keep() { try { sessionStorage.setItem(draft(), JSON.stringify({ marks, note: part("note").value })); } catch {} }
function kept() { try { return JSON.parse(sessionStorage.getItem(draft())); } catch { return null; } }

function tell(text, bad) {
  part("notice").textContent = text;
  part("notice").classList.toggle("rv-bad", Boolean(bad));
}

function showMarks() {
  const box = part("marks");
  box.replaceChildren();
  now.behaviours.forEach((behaviour, i) => {
    const button = add(box, "button");
    button.type = "button";
    const where = (marks[i] || []).join(",");
    button.dataset.state = where;
    button.dataset.mark = i;
    add(button, "kbd", behaviour.key);
    add(button, "span", " " + behaviour.name);
    add(button, "span", WHERE_TEXT[where], "rv-where");
    button.setAttribute("aria-label", `${behaviour.name}: ${where || "neither"}`);
  });
}

function cycle(i) {
  const at = WHERE.findIndex((w) => w.join() === (marks[i] || []).join());
  marks[i] = WHERE[(at + 1) % WHERE.length];
  keep();
  showMarks();
}

function table(box, head, rows) {
  const made = add(box, "table");
  const top = add(add(made, "thead"), "tr");
  head.forEach((h) => add(top, "th", h));
  const body = add(made, "tbody");
  for (const row of rows) {
    const line = add(body, "tr");
    row.forEach((cell) => add(line, "td", cell));
  }
}

const number = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits));
const span = (row, digits = 2) => (row.low === null ? "–" : `${number(row.low, digits)} to ${number(row.high, digits)}`);

function showSummary(s) {
  const box = part("summary");
  box.replaceChildren();
  if (!s.comparisons.length) add(box, "p", "No verdict but skips: there is nothing to count.");
  s.comparisons.slice(0, 3).forEach((c) => add(box, "p", c.conclusion, "rv-conclusion"));
  if (s.comparisons.length) {
    add(box, "h2", "Win rate of B against A (ties count half, Wilson 95 % interval)");
    table(box, ["A", "B", "B's win rate", "95 %", "A / B / tie / both bad", "items"], s.comparisons.map((c) =>
      [c.a, c.b, number(c.win_rate), span(c), `${c.a_wins} / ${c.b_wins} / ${c.ties} / ${c.both_bad}`, c.n]));
  }
  if (s.behaviours.length) {
    add(box, "h2", "Behaviours: share of answers that show them");
    table(box, ["behaviour", "A", "B", "change", "95 %", "verdict"], s.behaviours.map((x) =>
      [x.behaviour, number(x.a_shows), number(x.b_shows), number(x.delta), span(x), x.moved]));
  }
  if (s.agreement.length) {
    add(box, "h2", "Agreement with other reviewers (Cohen's κ)");
    table(box, ["reviewers", "items", "equal", "κ", "95 %"], s.agreement.map((x) =>
      [x.reviewers.join(", "), x.n, number(x.agreement), number(x.kappa), span(x)]));
  }
  add(box, "p", `All results: dpo-diag review ${s.run} --results`);
}

function show(state) {
  now = state;
  tell(state.notice, state.notice.startsWith("NOT SAVED"));
  root.setAttribute("aria-busy", "false");
  part("reviewer").textContent = `reviewer: ${state.reviewer}`;
  part("count").textContent = `${state.done} of ${state.total} judged` + (state.skipped ? `, ${state.skipped} skipped` : "");
  root.querySelector(".rv-bar").style.width = `${(100 * state.done) / Math.max(1, state.total)}%`;
  const progress = root.querySelector(".rv-progress");
  progress.setAttribute("aria-valuemax", state.total);
  progress.setAttribute("aria-valuenow", state.done);
  part("work").hidden = !state.item;
  part("end").hidden = Boolean(state.item);
  for (const button of root.querySelectorAll('[data-act="undo"]')) button.disabled = !state.can_undo;
  if (state.item) {
    part("prompt").textContent = state.item.prompt;
    part("prompt").scrollTop = 0;
    part("reference-box").hidden = state.item.reference === null;
    part("reference").textContent = state.item.reference ?? "";
    fill(part("left"), state.item.left);
    fill(part("right"), state.item.right);
    const before = kept();
    marks = before?.marks ?? state.item.marks;
    part("note").value = before?.note ?? state.item.note;
    showMarks();
    since = performance.now();
  } else {
    part("reopen").hidden = !state.skipped;
    showSummary(state.summary);
  }
  root.dataset.item = state.item ? state.item.id : "";
  root.dataset.done = state.done;
}

async function call(name, argument) {
  if (busy) return;
  busy = true;
  root.setAttribute("aria-busy", "true");
  // A verdict is not shown as given before the server has it on the disk.
  try {
    const old = draft();
    const state = await callServer(name, argument);
    if (!("total" in state)) throw new Error("no state");
    if (old) try { sessionStorage.removeItem(old); } catch {}
    show(state);
  } catch (error) {
    tell("The server does not answer: the last verdict may not be saved. Start dpo-diag review again and open its new address.", true);
  } finally {
    busy = false;
    root.setAttribute("aria-busy", "false");
  }
}

function verdict(name) {
  if (!now || !now.item) return;
  const seconds = (performance.now() - since) / 1000;
  call("judge", { item: now.item.id, verdict: name, marks, note: part("note").value, seconds });
}

const KEYS = { 1: "left", 2: "right", ArrowLeft: "left", ArrowRight: "right", t: "tie", b: "both_bad", s: "skip" };

function onKey(event) {
  if (!root.isConnected) { document.removeEventListener("keydown", onKey); return; }
  if (!now || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === part("note")) {
    if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey)) { event.preventDefault(); part("note").blur(); }
    return;
  }
  // A key held down must not judge one item after the other.
  if (event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const i = now.behaviours.findIndex((x) => x.key === key);
  if (key === "u") call("undo", {});
  else if (key === "r" && !now.item && now.skipped) call("reopen", {});
  else if (!now.item) return;
  else if (KEYS[key]) verdict(KEYS[key]);
  else if (key === "n") part("note").focus();
  else if (i >= 0) cycle(i);
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", onKey);
part("note").addEventListener("input", keep);
root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.verdict) verdict(button.dataset.verdict);
  else if (button.dataset.act) call(button.dataset.act, {});
  else if (button.dataset.mark) cycle(Number(button.dataset.mark));
  // Else Enter or the space bar would press it again for the next item.
  button.blur();
});
call("state", {});
