"use strict";
// The page is whole without this script. With it: values under a pointer, a finger or the arrow keys; answers filtered,
// searched and in pages; a cue where a table goes on beyond its edge; everything unfolded and listed on paper.
(() => {
  const all = (where, root = document) => Array.from(root.querySelectorAll(where));
  const by = (id) => document.getElementById(id);
  const seen = (element) => element.getClientRects().length > 0;

  // --- values of charts ---
  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);
  let marks = [];

  const hide = () => {
    tip.hidden = true;
    marks.forEach((m) => m.remove());
    marks = [];
  };
  const say = (rows, x, y, picture) => {
    tip.replaceChildren(...rows.map(([text, kind]) => {
      const line = document.createElement("div");
      line.textContent = text;
      if (kind) line.className = kind;
      return line;
    }));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > document.documentElement.clientWidth - 4 ? x - 14 - box.width : x + 14;
    // In a narrow window there is no room beside the point: above the picture, and above the finger.
    const narrow = document.documentElement.clientWidth < 500;
    const top = narrow ? picture.getBoundingClientRect().top - box.height - 4 : y - box.height / 2;
    tip.style.left = `${Math.max(4, left) + window.scrollX}px`;
    tip.style.top = `${Math.max(4, top) + window.scrollY}px`;
  };
  const draw = (svg, name, attributes) => {
    const mark = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) mark.setAttribute(key, value);
    svg.append(mark);
    marks.push(mark);
  };
  const frameOf = (svg) => {
    const [x0, x1, px0, px1, y0, y1, py0, py1, log] = svg.dataset.frame.split(" ").map(Number);
    const f = log ? Math.log : (v) => v;
    const share = (v, a, b) => (b === a ? 0.5 : (v - a) / (b - a));
    const between = (v, a, b) => Math.min(Math.max(v, Math.min(a, b)), Math.max(a, b));
    return {
      x: (v) => px0 + share(v, x0, x1) * (px1 - px0),
      y: (v) => between(py0 + share(f(v), f(y0), f(y1)) * (py1 - py0), py0, py1),
      back: (px) => x0 + share(px, px0, px1) * (x1 - x0),
      top: Math.min(py0, py1), bottom: Math.max(py0, py1),
    };
  };
  const onPage = (svg, x, y) => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    return [box.left + x * scale, box.top + y * scale];
  };
  const inside = (svg, event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };

  const lineChart = (values) => {
    const steps = [...new Set(values.lines.flatMap((l) => l.x))].sort((a, b) => a - b);
    const show = (svg, place) => {
      hide();
      const frame = frameOf(svg), step = steps[place], x = frame.x(step);
      draw(svg, "line", { x1: x, x2: x, y1: frame.top, y2: frame.bottom, class: "cross" });
      const rows = [[`${values.word} ${step}`, "at"]];
      let y = frame.top;
      for (const l of values.lines) {
        const i = l.x.indexOf(step);
        if (i < 0) continue;
        rows.push([`${l.n}: ${l.t[i]}`, `of ${l.k}`]);
        const v = l.y ? l.y[i] : parseFloat(l.t[i]);
        if (v !== null && Number.isFinite(v)) {
          y = frame.y(v);
          draw(svg, "circle", { cx: x, cy: y, r: 4.5, class: `spot ${l.k}` });
        }
      }
      say(rows, ...onPage(svg, x, y), svg);
    };
    return {
      n: steps.length, show, first: steps.length - 1,
      at: (svg, px) => {
        const wanted = frameOf(svg).back(px);
        return steps.reduce((best, s, i) => (Math.abs(s - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);
      },
    };
  };
  const pointChart = (values) => ({
    n: values.points.length, first: values.points.length - 1,
    show: (svg, place) => {
      hide();
      const frame = frameOf(svg), [a, b, text] = values.points[place];
      const box = svg.dataset.frame.split(" ").map(Number);
      const x = Math.min(Math.max(frame.x(a), Math.min(box[2], box[3])), Math.max(box[2], box[3])), y = frame.y(b);
      draw(svg, "circle", { cx: x, cy: y, r: 6, class: "cross ring" });
      say(text.split("\n").map((t, i) => [t, i ? "" : "at"]), ...onPage(svg, x, y), svg);
    },
    at: (svg, px, py) => {
      const frame = frameOf(svg);
      let best = 0, least = Infinity;
      values.points.forEach(([a, b], i) => {
        const far = (frame.x(a) - px) ** 2 + (frame.y(b) - py) ** 2;
        if (far < least) [best, least] = [i, far];
      });
      return best;
    },
  });
  const markChart = (chart) => {
    const shown = () => all("[data-tip]", chart).filter(seen);
    return {
      get n() { return shown().length; }, first: 0,
      show: (svg, place) => {
        hide();
        const mark = shown()[place], box = mark.getBoundingClientRect();
        say([[mark.dataset.tip, ""]], box.right, box.top + box.height / 2, svg);
      },
      at: (svg, px, py, target) => shown().indexOf(target),
    };
  };
  for (const chart of all(".chart")) {
    const island = chart.querySelector("script.values");
    const values = island && JSON.parse(island.textContent);
    const kind = values ? (values.lines ? lineChart(values) : pointChart(values)) : markChart(chart);
    if (!kind.n && values) continue;
    let place = null;
    const picture = () => all("svg", chart).find(seen);
    chart.tabIndex = 0;
    chart.setAttribute("role", "group");
    const label = chart.querySelector("svg").getAttribute("aria-label");
    chart.setAttribute("aria-label", `${label} ${document.body.dataset.keys}`);
    const point = (event) => {
      const svg = event.target.closest("svg");
      if (!svg) return;
      const found = kind.at(svg, ...inside(svg, event), event.target);
      if (found < 0) return hide();
      place = found;
      kind.show(svg, place);
    };
    chart.addEventListener("pointermove", point);
    chart.addEventListener("pointerdown", point);
    chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Escape") hide();
      if (step === undefined || !kind.n) return;
      event.preventDefault();
      place = place === null ? kind.first : Math.min(Math.max(place + step, 0), kind.n - 1);
      kind.show(picture(), place);
    });
  }
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".chart")) hide(); });

  // --- tables that go on beyond their edge ---
  const cues = all(".scrolled").map((outer) => {
    const inner = outer.firstElementChild;
    const look = () => outer.classList.toggle("goes-on", inner.scrollLeft + inner.clientWidth < inner.scrollWidth - 2);
    inner.addEventListener("scroll", look, { passive: true });
    return look;
  });
  const lookAll = () => cues.forEach((look) => look());
  window.addEventListener("resize", lookAll);
  document.addEventListener("toggle", lookAll, true);
  lookAll();

  // --- answers ---
  const filled = (words, values) => words.replace(/%\((\w+)\)s/g, (all_, name) => values[name]);
  const PAGE = 50, list = by("answers"), filter = by("filter");
  let beforePrint = () => {}, afterPrint = () => {};
  if (list && filter) {
    const cards = all(".prompt", list), texts = new Map();
    const [find, changed, tag, phrase] = ["find", "by-changed", "by-tag", "by-phrase"].map(by);
    let wanted = cards, page = 0;
    const has = (card, name, value) => !value || (card.dataset[name] || "").split(" ").includes(value);
    const textOf = (card) => {
      if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
      return texts.get(card);
    };
    const turn = () => {
      const pages = Math.max(1, Math.ceil(wanted.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      const shown = new Set(wanted.slice(page * PAGE, (page + 1) * PAGE));
      cards.forEach((card) => { card.hidden = !shown.has(card); });
      by("pager").hidden = pages < 2;
      const at = filled(by("page").dataset.says, { page: page + 1, pages });
      by("page").textContent = at;
      by("previous").disabled = page === 0;
      by("next").disabled = page === pages - 1;
      const words = by("found").dataset, less = wanted.length < cards.length;
      const asked = filled(less ? words.some : words.all, { n: wanted.length, all: cards.length });
      by("found").textContent = pages > 1 ? `${asked} · ${at}` : asked;
      lookAll();
    };
    const select = () => {
      const chosen = filter.querySelector("input[name=standing]:checked");
      const words = find.value.trim().toLowerCase();
      wanted = cards.filter((card) => has(card, "standing", chosen && chosen.value)
        && has(card, "changed", changed && changed.value) && has(card, "tags", tag && tag.value)
        && has(card, "phrases", phrase && phrase.value) && (!words || textOf(card).includes(words)));
      page = 0;
      turn();
    };
    let waiting = 0;
    find.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(select, 60); });
    filter.addEventListener("change", select);
    by("clear").addEventListener("click", () => {
      find.value = "";
      [changed, tag, phrase].forEach((one) => { if (one) one.value = ""; });
      const first = filter.querySelector("input[name=standing]");
      if (first) first.checked = true;
      select();
    });
    const move = (by_) => { page += by_; turn(); list.scrollIntoView({ block: "start" }); };
    by("previous").addEventListener("click", () => move(-1));
    by("next").addEventListener("click", () => move(1));
    const open = (value) => cards.forEach((card) => { if (!card.hidden) card.open = value; });
    by("open-all").addEventListener("click", () => open(true));
    by("close-all").addEventListener("click", () => open(false));
    beforePrint = () => wanted.forEach((card) => { card.hidden = false; });
    afterPrint = turn;
    filter.hidden = false;
    select();
  }

  window.addEventListener("beforeprint", () => {
    hide();
    all("details.numbers").forEach((d) => { d.open = true; });
    beforePrint();
  });
  window.addEventListener("afterprint", () => afterPrint());
})();
