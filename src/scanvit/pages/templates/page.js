"use strict";
// The only script of these pages, allowed by its hash. Nothing here reads from the network or writes text as HTML; without it a page says the same.

const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
let active = null, byPointer = false;

function show(mark, x, y) {
  if (active !== mark) {
    hide();
    active = mark;
    mark.classList.add("active");
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
  }
  byPointer = x !== undefined;
  const box = mark.getBoundingClientRect();
  const left = (x ?? box.left + box.width / 2) - tip.offsetWidth / 2;
  const above = (y ?? box.top) - tip.offsetHeight - 12;
  tip.style.left = Math.max(6, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 6)) + "px";
  tip.style.top = (above > 6 ? above : (y ?? box.bottom) + 16) + "px";
}

function hide() {
  if (active) active.classList.remove("active");
  active = null;
  tip.hidden = true;
}

// A browser's own tooltips come late, never by keyboard, and not on touch: what they say moves into ours.
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.parentElement;
  if (mark.tagName !== "svg" || mark.matches(".strip")) mark.dataset.tip = title.textContent;
  title.remove(); // a figure's own name is its aria-label too
}
for (const cell of document.querySelectorAll("td[title]")) {
  cell.dataset.tip = cell.title;
  cell.removeAttribute("title");
  if (!cell.closest(".confusion")) cell.tabIndex = 0;
}
const figures = new Map();
for (const figure of document.querySelectorAll("svg[role=img], table.confusion")) {
  const marks = [...figure.querySelectorAll("[data-tip]")];
  if (marks.length) {
    figures.set(figure, { marks, at: -1 });
    figure.tabIndex = 0;
  }
}

function nearest(marks, x, y) {
  let best = null, least = 28 ** 2;
  for (const mark of marks) {
    const box = mark.getBoundingClientRect();
    const dx = Math.max(box.left - x, 0, x - box.right), dy = Math.max(box.top - y, 0, y - box.bottom);
    if (dx * dx + dy * dy < least) [best, least] = [mark, dx * dx + dy * dy];
  }
  return best;
}

addEventListener("pointermove", (event) => {
  const figure = event.target.closest?.("svg[role=img]");
  const mark = event.target.closest?.("[data-tip]") ?? (figures.has(figure) ? nearest(figures.get(figure).marks, event.clientX, event.clientY) : null);
  if (mark) show(mark, event.clientX, event.clientY);
  else if (!tip.contains(event.target)) hide();
});
addEventListener("pointerdown", (event) => { if (!event.target.closest?.("[data-tip]")) hide(); });
addEventListener("focusin", (event) => { if (event.target.dataset?.tip && event.target.matches(":focus-visible")) show(event.target); });
addEventListener("focusout", hide);
addEventListener("scroll", () => { if (active) byPointer ? hide() : show(active); }, { passive: true });
addEventListener("keydown", (event) => {
  if (event.key === "Escape") return hide();
  const state = figures.get(event.target);
  if (!state) return;
  const row = event.target.matches(".confusion") ? event.target.querySelectorAll("tbody tr").length : 1;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row }[event.key];
  if (!step) return;
  event.preventDefault();
  const next = state.at < 0 ? 0 : state.at + step;
  if (next >= 0 && next < state.marks.length) state.at = next;
  show(state.marks[state.at]);
});

// Tables: the heading is a button; a second press turns the order round. What holds no number stays at the end.
function value(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.value ?? cell.firstChild?.textContent ?? "").trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return { text, number };
}

function sort(table, heading, button) {
  const down = heading.getAttribute("aria-sort") === "descending" || (!heading.hasAttribute("aria-sort") && heading.classList.contains("text"));
  for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "ascending" : "descending");
  const sign = down ? 1 : -1, column = heading.cellIndex, body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, ...value(row, column) }));
  rows.sort((a, b) => {
    if (heading.classList.contains("text")) return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
    if (Number.isNaN(a.number) || Number.isNaN(b.number)) return Number.isNaN(a.number) - Number.isNaN(b.number);
    return sign * (a.number - b.number);
  });
  body.append(...rows.map(({ row }) => row));
  button.focus();
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[table.tHead.rows.length - 1].cells) {
    if (heading.tagName !== "TH") continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(table, heading, button));
    heading.append(button);
  }
}

// On paper nothing can be opened.
const opened = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) { details.open = true; opened.push(details); }
});
addEventListener("afterprint", () => { for (const details of opened.splice(0)) details.open = false; });
