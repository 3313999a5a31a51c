"use strict";
// Find, open all, close all. The page is whole without this script.
(() => {
  const list = document.getElementById("answers");
  const find = document.getElementById("find");
  if (list && find) {
    const cards = Array.from(list.querySelectorAll(".prompt"));
    const same = document.getElementById("same");
    const texts = new Map();
    const all = (open) => cards.forEach((c) => { if (!c.hidden) c.open = open; });
    document.getElementById("open-all").addEventListener("click", () => all(true));
    document.getElementById("close-all").addEventListener("click", () => all(false));
    find.addEventListener("input", () => {
      const wanted = find.value.trim().toLowerCase();
      let shown = 0;
      for (const card of cards) {
        if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
        card.hidden = wanted !== "" && !texts.get(card).includes(wanted);
        if (!card.hidden) shown += 1;
      }
      if (same) same.open = wanted !== "" && cards.some((c) => !c.hidden && same.contains(c));
      document.getElementById("found").textContent = wanted ? `${shown} of ${cards.length} prompts` : "";
    });
  }
  window.addEventListener("beforeprint", () => document.querySelectorAll("details.numbers").forEach((d) => { d.open = true; }));
})();
