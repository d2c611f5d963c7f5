// Dims as things: those that the reader chose are singled out in every figure and table, and each leads to what is known
// of it. The choice is in the address: `dims=507,247`, and `others=hidden` where the others are not shown.

const DIM_ROLE = "a.dim[data-dim]";
const chosenDims = () => new Set((state.get("dims") ?? "").split(/\D+/).filter(Boolean).map(Number));
const othersHidden = () => state.get("others") === "hidden";
const chooseDims = (dims) => state.set("dims", [...new Set(dims)].join(",") || null);

function toggleDim(dim) {
  const chosen = chosenDims();
  if (!chosen.delete(dim)) chosen.add(dim);
  chooseDims(chosen);
}

// Of the run to which a part of the page belongs, else of the page that is shown: what dim_places.py says of its dims.
const dimFacts = (() => {
  const known = new Map();
  return (part = document.querySelector(".page:not([hidden])")) => {
    const run = part?.closest("[data-run]")?.dataset.run;
    if (run === undefined) return null;
    if (!known.has(run)) {
      const facts = JSON.parse(document.getElementById(run).dataset.dims);
      known.set(run, { ...facts, pages: new Set(facts.pages), sites: new Set(facts.sites), otherRules: new Set(facts.otherRules) });
    }
    return known.get(run);
  };
})();

const dimPlace = (facts, dim) => (facts.pages.has(dim) ? `${facts.gallery}/D${dim}.html` : `#${facts.run}/tables`);

function dimLink(facts, dim) {
  const link = element("a", { className: "dim", href: dimPlace(facts, dim), textContent: dim });
  link.dataset.dim = dim;
  return link;
}

// Of a table its dims, row by row; nothing where it has none. Neurons and heads have numbers of their own.
function dimsOfRows(table, facts) {
  const named = (name) => table.columns.find((column) => column.name === name);
  const [site, sites, rule] = ["site", "sites", "rule"].map(named);
  const column = named("target_dim") ?? named("dim") ?? named("dims");
  if (!facts || !column || (column.name === "dims" && column.kind !== "text")) return null;
  const isOther = (row) => {
    const at = site?.get(row) ?? sites?.get(row) ?? null;
    return (at !== null && !at.split("+").every((one) => facts.sites.has(one))) || (rule && facts.otherRules.has(rule.get(row)));
  };
  const of = (row) => {
    const value = column.get(row);
    if (value === null || (column.name !== "target_dim" && isOther(row))) return [];
    return column.name === "dims" ? value.split("+").map(Number) : [value];
  };
  return { column, of };
}

// What table.js asks for: which rows are singled out or left out, the cells that lead somewhere, and when that changes.
function marksOf(table, box) {
  const facts = dimFacts(box);
  const dims = dimsOfRows(table, facts);
  if (!dims) return null;
  if (dims.column.name !== "dims") dims.column.cell = (row) => dims.of(row).map((dim) => dimLink(facts, dim))[0] ?? null;
  return {
    test() {
      const chosen = chosenDims();
      return chosen.size ? (row) => dims.of(row).some((dim) => chosen.has(dim)) : null;
    },
    hides: () => othersHidden(),
    isWithout: (row) => !dims.of(row).length,
    on: (listener) => document.addEventListener("dimschosen", listener),
  };
}

(() => {
  const form = document.getElementById("dim-tools");
  if (!form) return;
  const [field, rules, says] = ["#dims", "#dims-of-rule", "output"].map((name) => form.querySelector(name));
  const ways = [...form.querySelectorAll('input[name="others"]')];
  const notice = document.getElementById("dims-chosen");

  // 507, 247 or 5..9
  const typed = (text, width) => {
    const parts = text.split(/[\s,;]+/).filter(Boolean).map((part) => part.match(/^D?(\d+)(?:\.\.D?(\d+))?$/i));
    if (parts.includes(null)) return { says: "Expected numbers of dims, as in 507, 247 or 5..9." };
    const dims = parts.flatMap(([, first, last]) => (last === undefined ? [Number(first)] : Array.from({ length: Math.max(0, Math.min(last, width) - first + 1) }, (_, step) => Number(first) + step)));
    const beyond = dims.find((dim) => dim >= width);
    return beyond === undefined ? { dims } : { says: `This model has dims 0 to ${width - 1}; ${beyond} is not one.` };
  };
  const spans = (dims) => {
    const parts = [];
    for (const dim of [...dims].sort((one, other) => one - other)) {
      const last = parts.at(-1);
      if (last && dim === last[1] + 1) last[1] = dim;
      else parts.push([dim, dim]);
    }
    return parts.map(([first, last]) => (last - first > 1 ? `${first}..${last}` : first === last ? first : `${first}, ${last}`)).join(", ");
  };

  whenTyped(field, () => {
    const { dims, says: wrong } = typed(field.value, dimFacts()?.width ?? Infinity);
    field.setAttribute("aria-invalid", Boolean(wrong));
    says.textContent = wrong ?? "";
    if (dims) chooseDims(dims);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const way of ways) way.addEventListener("change", () => state.set("others", way.value === "hidden" ? "hidden" : null));
  rules.addEventListener("change", () => {
    if (rules.value) chooseDims(dimFacts().selected[rules.value][2]);
    rules.value = "";
  });
  for (const button of document.querySelectorAll(".no-dims")) button.addEventListener("click", () => chooseDims([]));

  const show = () => {
    const chosen = chosenDims();
    if (document.activeElement !== field) field.value = spans(chosen);
    for (const way of ways) way.checked = (way.value === "hidden") === othersHidden();
    form.classList.toggle("chosen", chosen.size > 0);
    notice.hidden = !chosen.size || !dimFacts();
    notice.querySelector("span").textContent = `${othersHidden() ? "Without other dims than" : "Highlighted:"} ${chosen.size > 12 ? `${chosen.size} dims` : spans(chosen)}`;
    for (const link of document.querySelectorAll(DIM_ROLE)) link.classList.toggle("chosen", chosen.has(Number(link.dataset.dim)));
    for (const row of document.querySelectorAll("table.sortable tbody tr")) {
      const dims = [...row.querySelectorAll(DIM_ROLE)].map((link) => Number(link.dataset.dim));
      const is = dims.some((dim) => chosen.has(dim));
      row.classList.toggle("chosen", is);
      row.hidden = chosen.size > 0 && othersHidden() && dims.length > 0 && !is;
    }
    document.dispatchEvent(new Event("dimschosen"));
    for (const box of document.querySelectorAll(".plot[data-state]")) {
      if (!box.data || !hasDims(box)) continue;
      if (box.closest("[hidden]")) delete box.dataset.state; // drawn when it is seen again
      else drawFigure(box);
    }
  };
  // The rules are those of the run that is shown.
  const offer = () => {
    const facts = dimFacts();
    form.hidden = !facts;
    notice.hidden = !facts || !chosenDims().size;
    if (!facts || rules.dataset.run === facts.run) return;
    rules.hidden = !facts.selected.length;
    rules.dataset.run = facts.run;
    rules.replaceChildren(element("option", { value: "", textContent: "of a rule …" }),
      ...facts.selected.map(([rule, population, dims], place) => element("option", { value: place, textContent: `${rule}, ${population}: ${dims.length}` })));
  };
  beforeDrawing = withChosenDims;
  state.on("dims", show);
  state.on("others", show);
  state.on("place", () => setTimeout(offer));
  document.addEventListener("drawn", ({ target }) => bindDims(target));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.(DIM_ROLE);
    if (!link?.hash || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    state.set("dim", link.dataset.dim);
  });
  setTimeout(() => {
    offer();
    show();
  });
})();
