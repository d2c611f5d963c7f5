// Figures with dims singled out. A figure says of which dims its parts are: `layout.meta.dims` has for a y axis one dim,
// that of its panel, or the dim of each row along it; a trace's `meta.dims` its dim, or that of each point.

const FADED = 0.15;
const VEIL = 0.78;
const LEAST_PANEL = 84; // pixels
const NONE_HERE = "none of the chosen dims is drawn here";
const axisOf = (trace) => `yaxis${(trace.yaxis ?? "y").slice(1)}`;
const hasDims = ({ data, layout }) => Boolean(layout.meta?.dims ?? layout.meta?.columns) || data.some((trace) => trace.meta?.dims !== undefined);

// Of each point of a trace its dim, or one number for all of it; nothing where no dim is known.
function dimsOfTrace(trace, layout) {
  if (trace.meta?.dims !== undefined) return trace.meta.dims;
  const along = layout.meta?.dims?.[axisOf(trace)];
  if (!Array.isArray(along)) return along;
  return trace.type === "heatmap" ? along : [...(trace.y ?? [])].map((y) => (y === null ? null : along[Math.round(y)]));
}

function withChosenDims({ data, layout }) {
  const chosen = chosenDims();
  if (!chosen.size || !hasDims({ data, layout })) return { data, layout };
  const alone = othersHidden();
  const rows = alone ? leftRows(layout, chosen) : {};
  let traces = data.map((trace) => {
    const dims = dimsOfTrace(trace, layout);
    if (dims === undefined || (Array.isArray(dims) && dims.every((dim) => dim === null))) return trace;
    if (!Array.isArray(dims)) return chosen.has(dims) ? trace : alone ? { ...trace, visible: false } : { ...trace, opacity: FADED };
    const is = dims.map((dim) => dim === null || chosen.has(dim));
    if (!alone) return trace.type === "heatmap" ? trace : faded(trace, is);
    return moved(only(trace, is), trace.meta?.dims === undefined ? rows[axisOf(trace)] : null);
  });
  const changed = { ...layout, annotations: (layout.annotations ?? []).map((one) => named(one, chosen, alone)).filter(Boolean) };
  if (!alone) changed.shapes = [...(layout.shapes ?? []), ...data.flatMap((trace) => (trace.type === "heatmap" ? veils(trace, layout, chosen) : []))];
  else {
    hideRows(changed, rows, data);
    traces = restack(changed, traces, chosen);
  }
  if (layout.meta?.columns) traces = withColumns(changed, traces, chosen, alone);
  return { data: traces, layout: changed };
}

// Over columns, those of other dims are veiled; the lines of a surface, which run over all dims, fade, and what they have
// at a chosen dim is drawn through the depth.
function withColumns(layout, traces, chosen, alone) {
  const { columns } = layout.meta;
  const known = columns.filter((dim) => chosen.has(dim));
  const heat = traces.find(({ type }) => type === "heatmap");
  if (!known.length) layout.annotations = [...layout.annotations, { text: NONE_HERE, x: 0.5, y: 1, xref: "paper", yref: "paper", yanchor: "top", showarrow: false, bgcolor: "white" }];
  if (heat) {
    const ends = [-1, ...columns.flatMap((dim, column) => (chosen.has(dim) ? [column] : [])), columns.length];
    layout.shapes = [...(layout.shapes ?? []), ...ends.slice(1).flatMap((end, place) => (end - ends[place] < 2 ? [] : [{
      type: "rect", xref: heat.xaxis, yref: `${heat.yaxis} domain`, x0: ends[place] + 0.5, x1: end - 0.5, y0: 0, y1: 1,
      fillcolor: "white", opacity: alone ? 1 : VEIL, line: { width: 0 }, layer: "above",
    }]))];
    return traces;
  }
  const lines = traces.filter(({ meta }) => meta?.shift !== undefined);
  return [
    ...traces.map((trace) => (lines.includes(trace) ? { ...trace, ...(alone ? { visible: false } : { opacity: FADED }) } : trace)),
    ...known.map((dim) => ridge(dim, lines)),
  ];
}

function ridge(dim, lines) {
  const points = lines.map(({ x, y, meta }) => {
    const at = meta.heights.findIndex((_, place) => Math.round(x[place + 1] - meta.shift) === dim); // the first is a corner
    return { x: dim + meta.shift, y: at < 0 ? meta.ground : y[at + 1], height: at < 0 ? 0 : meta.heights[at] };
  });
  return {
    type: "scatter", mode: "lines+markers", name: `dimension ${dim}`, meta: { dims: dim }, line: { color: "#0072B2", width: 1.5 }, marker: { size: 4 },
    x: points.map(({ x }) => x), y: points.map(({ y }) => y), customdata: points.map(({ height }) => readable(height, { kind: "number" })),
    hovertemplate: `dimension ${dim}<br>|x| %{customdata}<extra></extra>`,
  };
}

function faded(trace, is) {
  if (trace.mode === "lines") return trace;
  const opacity = trace.marker?.opacity ?? 1;
  const changed = { ...trace, marker: { ...trace.marker, opacity: is.map((one, place) => (Array.isArray(opacity) ? opacity[place] : opacity) * (one ? 1 : FADED)) } };
  return Array.isArray(trace.text) ? { ...changed, text: trace.text.map((text, place) => (is[place] ? text : "")) } : changed;
}

// The points that are meant, of whatever is a list of all of them.
function only(trace, is) {
  const length = is.length;
  const kept = (value) => {
    if (Array.isArray(value)) return value.length === length ? value.filter((_, place) => is[place]) : value;
    return value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, kept(entry)])) : value;
  };
  if (trace.type !== "heatmap") return kept(trace);
  const lines = (value) => (Array.isArray(value) ? value.filter((_, row) => is[row]) : value);
  return { ...trace, y: lines(trace.y), z: lines(trace.z), customdata: lines(trace.customdata), text: lines(trace.text) };
}

// Rows that stay, by axis: where each of them is then.
function leftRows(layout, chosen) {
  const left = {};
  for (const [axis, dims] of Object.entries(layout.meta?.dims ?? {})) {
    if (Array.isArray(dims)) left[axis] = new Map(dims.map((dim, row) => [dim, row]).filter(([dim]) => chosen.has(dim)).map(([, row], place) => [row, place]));
  }
  return left;
}

const moved = (trace, places) => (places && trace.y ? { ...trace, y: trace.y.map((y) => (y === null ? null : y - Math.round(y) + places.get(Math.round(y)))) } : trace);

// The rows that stay, in the places of those before them.
function hideRows(layout, rows, data) {
  for (const [name, places] of Object.entries(rows)) {
    const texts = [...places.keys()].map((row) => layout[name].ticktext[row]);
    const across = `x${(data.find((trace) => axisOf(trace) === name)?.xaxis ?? "x").slice(1)}`;
    layout[name] = { ...layout[name], type: "linear", tickvals: texts.map((_, place) => place), ticktext: texts, range: [Math.max(places.size, 1) - 0.5, -0.5] };
    if (places.size) continue;
    const axis = `xaxis${across.slice(1)}`;
    layout[axis] = { ...layout[axis], type: layout[axis]?.type ?? "linear" }; // which plotly tells by points
    layout.annotations.push({ text: NONE_HERE, x: 0.5, y: 0.5, xref: `${across} domain`, yref: `y${name.slice(5)} domain`, showarrow: false });
  }
}

// Panels of other dims go, and those with fewer rows get lower; what is around them stays around them.
function restack(layout, traces, chosen) {
  const said = layout.meta?.dims ?? {};
  if (!layout.height) return traces;
  const { t = 0, b = 0 } = layout.margin ?? {};
  const plot = layout.height - t - b;
  const acrossOf = (name) => `xaxis${(layout[name].anchor ?? "x").slice(1)}`;
  const byDomain = new Map();
  for (const name of Object.keys(layout).filter((key) => /^yaxis\d*$/.test(key))) {
    const { domain } = layout[name];
    if (!byDomain.has(domain[0])) byDomain.set(domain[0], { names: [], top: (1 - domain[1]) * plot, height: (domain[1] - domain[0]) * plot });
    byDomain.get(domain[0]).names.push(name);
  }
  const panels = [...byDomain.values()].sort((one, other) => one.top - other.top);
  let bottom = 0;
  panels.forEach((panel, place) => {
    const rows = panel.names.map((name) => said[name]).find(Array.isArray);
    const goes = panel.names.every((name) => typeof said[name] === "number" && !chosen.has(said[name]));
    const kept = rows ? rows.filter((dim) => chosen.has(dim)).length / rows.length : 1;
    panel.now = goes ? 0 : Math.min(panel.height, Math.max(LEAST_PANEL, kept * panel.height));
    panel.at = bottom;
    const below = panels[place + 1];
    panel.gap = below ? below.top - panel.top - panel.height : 0;
    if (!goes) bottom += panel.now + panel.gap;
  });
  const stay = panels.filter((panel) => panel.now);
  const total = stay.length ? stay.at(-1).at + stay.at(-1).now : LEAST_PANEL;
  if (Math.abs(total - plot) < 1) return traces;
  const moveY = (y) => {
    const down = (1 - y) * plot;
    if (down < 0) return 1 - down / total;
    const panel = panels.findLast((one) => one.top <= down + 1e-6) ?? panels[0];
    const inside = Math.min(1, (down - panel.top) / panel.height);
    return 1 - (panel.at + inside * panel.now + Math.max(0, down - panel.top - panel.height)) / total;
  };

  const gone = new Set();
  const titles = new Map(); // of what is along x, by column
  for (const panel of panels) {
    for (const name of panel.names) {
      const across = acrossOf(name);
      if (layout[across]?.title?.text) titles.set(String(layout[across].domain), layout[across].title);
      if (panel.now) layout[name] = { ...layout[name], domain: [1 - (panel.at + panel.now) / total, 1 - panel.at / total] };
      else {
        gone.add(`y${name.slice(5)}`).add(`x${across.slice(5)}`);
        delete layout[name];
        delete layout[across];
      }
    }
  }
  if (gone.size) {
    for (const name of stay.at(-1)?.names ?? []) {
      const across = acrossOf(name);
      layout[across] = { ...layout[across], showticklabels: true, title: titles.get(String(layout[across].domain)) };
    }
    for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name) && gone.has(layout[name].matches)) layout[name] = { ...layout[name], matches: undefined };
  }
  const isThere = ({ xref = "", yref = "" }) => !gone.has(xref.split(" ")[0]) && !gone.has(yref.split(" ")[0]);
  const onPaper = (one, keys) => (one.yref === "paper" ? { ...one, ...Object.fromEntries(keys.filter((key) => key in one).map((key) => [key, moveY(one[key])])) } : one);
  layout.annotations = (layout.annotations ?? []).filter(isThere).map((one) => onPaper(one, ["y"]));
  layout.shapes = (layout.shapes ?? []).filter(isThere).map((one) => onPaper(one, ["y0", "y1"]));
  if (layout.legend) layout.legend = { ...layout.legend, y: moveY(layout.legend.y ?? 1) };
  layout.height = total + t + b;
  if (!stay.length) {
    layout.annotations = [{ text: NONE_HERE, x: 0.5, y: 0.5, xref: "paper", yref: "paper", showarrow: false }];
    layout.xaxis = { visible: false };
    layout.yaxis = { visible: false };
  }
  // Of each entry of the legend the first trace that is left has it.
  const listed = new Set();
  return traces.filter((trace) => !gone.has(trace.yaxis ?? "y")).map((trace) => {
    const { colorbar } = trace;
    if (colorbar?.lenmode === "fraction" && colorbar.y !== undefined) {
      const [top, end] = [moveY(colorbar.y + colorbar.len / 2), moveY(colorbar.y - colorbar.len / 2)];
      trace = { ...trace, colorbar: { ...colorbar, y: (top + end) / 2, len: top - end } };
    }
    if (!gone.size || !trace.name || trace.legendgroup === undefined || listed.has(trace.legendgroup)) return trace;
    listed.add(trace.legendgroup);
    return { ...trace, showlegend: true };
  });
}

// An annotation that names dims says so: `dims 507 247`.
function named(annotation, chosen, alone) {
  const dims = annotation.name?.match(/^dims ([\d ]+)$/)?.[1].split(" ").map(Number);
  if (!dims || dims.some((dim) => chosen.has(dim))) return annotation;
  return alone ? null : { ...annotation, opacity: FADED };
}

// Cells have colours that say something, so the rows of others are veiled.
function veils(trace, layout, chosen) {
  const dims = layout.meta?.dims?.[axisOf(trace)];
  if (!Array.isArray(dims)) return [];
  return dims.flatMap((dim, row) => (chosen.has(dim) ? [] : [{
    type: "rect", xref: `${trace.xaxis ?? "x"} domain`, yref: trace.yaxis ?? "y", x0: 0, x1: 1, y0: row - 0.5, y1: row + 0.5,
    fillcolor: "white", opacity: VEIL, line: { width: 0 }, layer: "above",
  }]));
}

// A click on a point chooses its dim, one on a dim's name leads to it.
function bindDims(box) {
  if (!dimFacts(box)) return;
  if (!box.dataset.dims) {
    box.dataset.dims = "bound";
    box.on("plotly_click", ({ points }) => {
      const dims = points.map((point) => {
        const of = dimsOfTrace(point.data, box.layout);
        if (!Array.isArray(of)) return of;
        return of[point.data.type === "heatmap" ? point.pointNumber[0] : point.pointNumber];
      });
      for (const dim of new Set(dims)) if (Number.isInteger(dim)) toggleDim(dim);
    });
  }
  for (const [name, dims] of Object.entries(box.layout.meta?.dims ?? {})) {
    const id = `y${name.slice(5)}`;
    if (Array.isArray(dims)) {
      const texts = new Map(box.layout[name].ticktext.map((text, place) => [text, place]));
      const left = othersHidden() && chosenDims().size ? dims.filter((dim) => chosenDims().has(dim)) : dims;
      for (const text of box.querySelectorAll(`.${id}tick text`)) if (texts.has(text.textContent)) lead(text, left[texts.get(text.textContent)]);
    } else box.querySelectorAll(`.${id}title`).forEach((text) => lead(text, dims));
  }
}

function lead(text, dim) {
  text.classList.add("to-dim");
  text.setAttribute("role", "link");
  text.setAttribute("tabindex", "0");
  text.setAttribute("aria-label", `Dimension ${dim}`);
  const go = (event) => {
    if (event.type === "keydown" && event.key !== "Enter") return;
    event.stopPropagation();
    event.preventDefault(); // or the key would go on to press the panel's button
    goToDim(dim);
  };
  text.onclick = go;
  text.onkeydown = go;
}
