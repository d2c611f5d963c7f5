// All that the report knows of a dim, in a panel over the page: what is said of it, its values over the layers, and its
// rows in every table. The address has it as `dim=507`.

// Titles of the tables that are shown at once; the others open on request.
const ABOUT_A_DIM = {
  dims: "Which rules select it",
  lifecycle: "Who writes and removes it, layer by layer",
  origin_neurons: "Neurons that write it",
  ablation: "The model without it",
  gains: "Gains of the norms",
};

function goToDim(dim) {
  const facts = dimFacts();
  if (facts?.pages.has(dim)) location.href = dimPlace(facts, dim);
  else state.set("dim", String(dim));
}

(() => {
  const panel = element("dialog", { id: "dim-panel" });
  panel.setAttribute("aria-labelledby", "dim-panel-title");
  document.body.append(panel);
  panel.addEventListener("close", () => state.set("dim", null));
  panel.addEventListener("click", (event) => event.target === panel && panel.close());

  const show = async () => {
    const asked = state.get("dim");
    const facts = dimFacts();
    if (asked === null || !/^\d+$/.test(asked) || !facts) return panel.open && panel.close();
    const dim = Number(asked);
    const close = element("button", { type: "button", textContent: "Close", autofocus: true });
    close.addEventListener("click", () => panel.close());
    const mark = element("button", { type: "button" });
    const told = () => (mark.textContent = chosenDims().has(dim) ? "Do not single it out" : "Single it out");
    mark.addEventListener("click", () => {
      toggleDim(dim);
      told();
    });
    told();
    const title = element("h2", { id: "dim-panel-title", textContent: `Dimension ${dim}` }, element("span", { textContent: ` of ${facts.run}` }));
    const page = facts.pages.has(dim) ? [element("p", {}, element("a", { href: dimPlace(facts, dim), textContent: "Its page in the gallery, with the text in its colours" }))] : [];
    const body = element("div");
    panel.replaceChildren(element("div", { className: "head" }, title, mark, close), ...page, body);
    if (!panel.open) panel.showModal();
    const said = sentencesOn(facts.run, dim);
    if (dim >= facts.width) body.append(element("p", { className: "notice", textContent: `This model has dims 0 to ${facts.width - 1}.` }));
    const curve = element("div");
    const rest = element("div");
    body.append(curve, rest);
    if (said.length) {
      const sentences = element("ul", {}, ...said.map((text) => element("li", { textContent: text })));
      rest.append(part("What the report says of it", element("details", { open: said.length < 8 }, element("summary", { textContent: said.length === 1 ? "1 sentence" : `${said.length} sentences` }), sentences)));
    }
    for (const [name, heading] of Object.entries(ABOUT_A_DIM)) {
      const box = element("div");
      body.insertBefore(box, rest);
      fill(box, facts, name, dim, heading);
    }
    fillCurve(curve, facts, dim);
    const others = namesOf(facts.run).filter((name) => !(name in ABOUT_A_DIM));
    rest.append(part("Its rows in other tables", ...others.map((name) => onRequest(facts, name, dim))));
  };

  const part = (heading, ...children) => element("section", {}, element("h3", { textContent: heading }), ...children);

  // Each sentence once, wherever it stands.
  const sentencesOn = (run, dim) => {
    const places = document.querySelectorAll(`[data-run="${CSS.escape(run)}"] :is(li, p, h4) > a.dim[data-dim="${dim}"]`);
    const texts = [...places].map(({ parentElement }) => [...parentElement.childNodes].filter((node) => !(node instanceof HTMLUListElement || node instanceof HTMLElement && node.tagName === "SMALL")).map((node) => node.textContent).join("").trim());
    return [...new Set(texts)];
  };

  const boxOf = (run, name) => document.querySelector(`[data-table="${CSS.escape(`${run}/tables/${name}/rows`)}"]`);
  const namesOf = (run) => [...document.querySelectorAll(`[data-table^="${CSS.escape(`${run}/tables/`)}"]`)].map((box) => box.dataset.table.split("/").at(-2));
  const cutTo = (run, name) => boxOf(run, name)?.parentElement.querySelector(".caption b")?.textContent;

  const rowsOf = async (facts, name, dim) => {
    if (!boxOf(facts.run, name)) return null;
    const table = await unpackTable(`${facts.run}/tables/${name}/rows`);
    const dims = dimsOfRows(table, facts);
    if (!dims) return null;
    const rows = Array.from({ length: table.rows }, (_, row) => row).filter((row) => dims.of(row).includes(dim));
    const columns = table.columns.map((column) => {
      const values = rows.map((row) => column.get(row));
      const codes = column.codes && rows.map((row) => column.codes[row]);
      return { ...column, values, codes, get: (row) => values[row] };
    });
    return { rows: rows.length, columns, plain: rows.length < 8 };
  };

  const fill = async (box, facts, name, dim, heading) => {
    const table = await rowsOf(facts, name, dim).catch(() => null);
    if (!table?.rows) return;
    const rows = element("div", { className: "rows" });
    rows.dataset.file = `${facts.run.replaceAll("/", "-")}-D${dim}-${name}`;
    rows.setAttribute("aria-label", `${heading}: dimension ${dim}`);
    const cut = cutTo(facts.run, name);
    box.append(part(heading, ...(cut ? [element("p", { className: "caption", textContent: cut })] : []), rows));
    await makeTable(rows, table);
  };

  const onRequest = (facts, name, dim) => {
    const box = element("div");
    const details = element("details", {}, element("summary", { textContent: name }), box);
    details.addEventListener("toggle", async () => {
      if (!details.open || box.childNodes.length) return;
      await fill(box, facts, name, dim, `Table ${name}`);
      if (!box.childNodes.length) box.append(element("p", { className: "caption", textContent: "It has no row there." }));
    });
    return details;
  };

  // Largest |x| over the layers, of each site and population.
  const fillCurve = async (box, facts, dim) => {
    const table = await rowsOf(facts, "emergence", dim).catch(() => null);
    if (!table?.rows) return;
    const [site, population, layer, most] = ["site", "population", "layer", "max_abs"].map((name) => table.columns.find((column) => column.name === name));
    const curves = new Map();
    for (let row = 0; row < table.rows; row++) {
      const key = `${site.get(row)}, ${population.get(row)}`;
      if (!curves.has(key)) curves.set(key, { x: [], y: [], name: key, mode: "lines+markers", visible: site.get(row) === "resid_post" ? true : "legendonly" });
      curves.get(key).x.push(layer.get(row));
      curves.get(key).y.push(most.get(row) || null);
    }
    const data = [...curves.values()];
    if (data.every((one) => one.visible !== true)) for (const one of data) one.visible = true;
    const plot = element("div", { className: "plot-of-dim" });
    const cut = cutTo(facts.run, "emergence");
    box.append(part("Its largest |x| over the layers", ...(cut ? [element("p", { className: "caption", textContent: cut })] : []), plot));
    await plotly();
    const axis = { gridcolor: "#E4E4E4", linecolor: "#767676", zeroline: false };
    const layout = {
      height: 300, margin: { l: 64, r: 12, t: 8, b: 44 }, font: { family: "Helvetica, Arial, sans-serif", size: 12, color: "#222222" },
      plot_bgcolor: "white", xaxis: { ...axis, title: { text: "layer (block, from 0)" } }, yaxis: { ...axis, type: "log", dtick: 1, title: { text: "max |x|" } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    };
    const { data: traces, layout: shown } = themed({ data, layout });
    await Plotly.newPlot(plot, traces, shown, CONFIG);
  };

  state.on("dim", show);
  setTimeout(show);
})();
