// The index of a run: a table of all neurons.
(() => {
  document.getElementById("random")?.addEventListener("click", goToRandom);
  const box = document.getElementById("table");
  if (!box) return;
  // So many rows are shown at once; of more, one block.
  const MOST = 500_000;
  const NUMBERS = [
    ["active_share", "positions where it is above 0", "share"],
    ["mean", "mean", "activation"],
    ["std", "standard deviation", "activation"],
    ["kurtosis", "E[(x - mean)^4] / std^4: 3 for a normal distribution", ""],
    ["min", "smallest", "activation"],
    ["max", "largest", "activation"],
  ];

  const joined = (parts, Kind) => {
    const all = new Kind(parts.reduce((sum, part) => sum + part.length, 0));
    let place = 0;
    for (const part of parts) {
      all.set(part, place);
      place += part.length;
    }
    return all;
  };
  const show = async () => {
    const { blocks } = await beside.load("index");
    const layers = blocks.map((block) => block.layer);
    const asked = Number(location.hash.match(/^#L(\d+)$/)?.[1] ?? NaN);
    const all = blocks.reduce((sum, block) => sum + block.neurons, 0) <= MOST;
    const shown = layers.includes(asked) ? [asked] : all ? layers : layers.slice(0, 1);
    const chosen = shown.length === layers.length ? "#all" : `#L${shown[0]}`;
    for (const link of document.querySelectorAll("#blocks a")) {
      if (link.hash === chosen) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    const parts = await Promise.all(shown.map((layer) => beside.load(`L${layer}`)));
    const [layer, expert, neuron] = ["layer", "expert", "neuron"].map((name) => joined(parts.map((part) => integersOf(part[name])), Uint32Array));
    const pages = new Uint8Array(layer.length);
    let before = 0;
    for (const part of parts) {
      for (const place of part.pages) pages[before + place] = 1;
      before += part.rows;
    }
    const nameOf = (row) => neuronName(layer[row], expert[row], neuron[row]);
    const nothing = () => null;
    const name = {
      name: "neuron", kind: "text", meaning: "block, expert where there are any, and index of the neuron", get: nameOf,
      key: Float64Array.from(layer, (_, row) => row),
      // A number is that of the neuron; else what a name begins with.
      finder: (word) => (/^\d+$/.test(word) ? (row) => neuron[row] === Number(word) : (row) => nameOf(row).toLowerCase().startsWith(word)),
      href: (row) => (pages[row] ? `${nameOf(row)}.html` : null),
    };
    const page = { name: "page", kind: "text", meaning: "whether it has a page", levels: ["no", "yes"], codes: pages, get: (row) => ["no", "yes"][pages[row]], finder: nothing };
    const numbers = NUMBERS.map(([title, meaning, unit]) => {
      const values = joined(parts.map((part) => floatsOf(part[title])), Float32Array);
      return { name: title, kind: "number", meaning, unit, values, get: (row) => (Number.isNaN(values[row]) ? null : values[row]), finder: nothing };
    });
    await makeTable(box, { rows: layer.length, columns: [name, page, ...numbers], filters: ["page"] });
  };
  const showOrSay = () => show().catch((error) => box.replaceChildren(element("p", { className: "notice", textContent: error.message })));
  addEventListener("hashchange", showOrSay);
  showOrSay();
})();
