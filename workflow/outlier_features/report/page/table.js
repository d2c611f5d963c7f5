// Tables of any length: only the rows in view are in the document. Sorted by a header, filtered by the field below it,
// searched over all columns.

const SHOWN_CHARACTERS = 300;
const SPARE_ROWS = 12;

// As wording.number: integers, and others from a thousand to ten million, in full; else four significant digits.
function readable(value, column) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (column.kind === "integer") return column.unit ? value.toLocaleString("en") : String(value);
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value > 0 ? "∞" : "-∞";
  const size = Math.abs(value);
  if (size >= 1000 && size < 1e7) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  const text = value.toPrecision(4);
  if (text.includes("e") || (size !== 0 && size < 1e-4)) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

// Of the table that lies packed in the page, or of one that is given. A column may bring what is sorted by (`key`), what
// finds a word (`finder`), where a row leads (`href`), and what stands in its cell (`cell`). A `plain` table of a few rows
// is not searched.
async function makeTable(box, given = null) {
  const table = given ?? (await unpackTable(box.dataset.table));
  const shown = table.columns.filter((column) => !column.hidden);
  const all = Uint32Array.from({ length: table.rows }, (_, row) => row);
  const now = { order: all, found: null, column: null, descending: false, query: "", chosen: new Map(), filters: new Map() };
  const label = box.getAttribute("aria-label");
  const marks = globalThis.marksOf?.(table, box); // what the page singles out
  const kept = globalThis.keptOf?.(box); // where the page keeps what is asked, if it does
  const [choosers, fields, heads] = [new Map(), new Map(), new Map()]; // by column

  // A choice of the rows that have one value in a column of few.
  const chooser = (name) => {
    const column = table.columns.find((other) => other.name === name);
    const select = element("select", {}, element("option", { value: "", textContent: `any ${name}` }));
    select.append(...column.levels.map((level) => element("option", { value: level, textContent: level })));
    select.setAttribute("aria-label", `${name} in ${label}`);
    select.addEventListener("change", () => {
      now.chosen.set(column, select.value);
      arrange();
      keep();
    });
    choosers.set(column, select);
    return select;
  };

  const bar = element("div", { className: "bar" });
  const search = element("input", { type: "search", placeholder: "Search", spellcheck: false });
  search.setAttribute("aria-label", `Search in ${label}`);
  search.title = "Text anywhere in a cell, or a number; of several words each must be found in the row";
  const count = element("output");
  const button = element("button", { type: "button", textContent: "CSV" });
  button.title = "All rows that the page holds, exact";
  button.setAttribute("aria-label", `Download ${label} as CSV`);
  button.addEventListener("click", () => save(csv(table), "text/csv", `${box.dataset.file}.csv`));
  bar.append(...(table.plain ? [] : [search]), ...(table.filters ?? []).map((name) => chooser(name)), count, button);

  const readField = (column) => {
    const field = fields.get(column);
    const test = columnFilter(column, field.value);
    const unread = Boolean(field.value.trim()) && !test;
    field.setAttribute("aria-invalid", unread);
    if (test) now.filters.set(column, { test });
    else if (unread) now.filters.set(column, { unread: `${column.title ?? column.name}: ${filterSays(column)}.` });
    else now.filters.delete(column);
  };
  const filterField = (column) => {
    const field = element("input", { type: "text", placeholder: "filter", spellcheck: false, autocomplete: "off", title: filterSays(column) });
    field.setAttribute("aria-label", `Filter by ${column.title ?? column.name}: ${label}`);
    whenTyped(field, () => {
      readField(column);
      arrange();
      keep();
    });
    fields.set(column, field);
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !field.value) return;
      field.value = "";
      field.dispatchEvent(new Event("input"));
    });
    return field;
  };

  const sortBy = (column, descending) => {
    Object.assign(now, { column, descending });
    for (const [other, cell] of heads) {
      if (other === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
  };

  const view = element("div", { className: "window", tabIndex: 0 });
  view.setAttribute("role", "region");
  view.setAttribute("aria-label", label);
  const grid = element("table");
  grid.setAttribute("aria-rowcount", table.rows + 1);
  if (table.tall) grid.className = "tall";
  const widths = element("colgroup");
  const head = element("tr");
  for (const column of shown) {
    widths.append(element("col", { style: `width: ${widthOf(column, table.rows)}ch` }));
    const cell = element("th", { scope: "col", className: isNumeric(column) ? "number" : "" });
    const sorter = element("button", { type: "button", textContent: column.title ?? column.name });
    if (column.meaning) sorter.title = column.unit ? `${column.meaning} (${column.unit})` : column.meaning;
    if (sorter.title) sorter.setAttribute("aria-description", sorter.title);
    heads.set(column, cell);
    sorter.addEventListener("click", () => {
      sortBy(column, now.column === column ? !now.descending : isNumeric(column));
      arrange();
      keep();
    });
    cell.append(sorter, ...(table.plain ? [] : [filterField(column)]));
    head.append(cell);
  }
  const body = element("tbody");
  grid.append(widths, element("thead", {}, head), body);
  view.append(grid);
  box.replaceChildren(bar, view);
  grid.style.width = `${shown.reduce((sum, column) => sum + widthOf(column, table.rows), 0)}ch`;

  let height = 0;
  const draw = () => {
    const total = now.order.length;
    const first = height ? Math.max(0, Math.floor(view.scrollTop / height) - SPARE_ROWS) : 0;
    const fit = height ? Math.ceil(view.clientHeight / height) + 2 * SPARE_ROWS : 2;
    const last = Math.min(total, first + fit);
    const rows = [];
    for (let place = first; place < last; place++) {
      const row = element("tr", {}, ...shown.map((column) => cellOf(column, now.order[place], table)));
      row.setAttribute("aria-rowindex", place + 2);
      if (now.marked?.(now.order[place])) row.className = "chosen";
      rows.push(row);
    }
    body.replaceChildren(spacer(first * height), ...rows, spacer((total - last) * height));
    if (!height && rows.length) {
      height = rows[0].getBoundingClientRect().height;
      if (height) draw();
    }
  };
  const spacer = (pixels) => {
    const row = element("tr", { className: "spacer", style: `height: ${pixels}px` });
    row.setAttribute("aria-hidden", "true");
    return row;
  };
  const arrange = () => {
    let found = now.query ? matching(table, now.query) : all;
    for (const [column, value] of now.chosen) if (value) found = found.filter((row) => column.get(row) === value);
    const filters = [...now.filters.values()];
    for (const { test } of filters) if (test) found = found.filter(test);
    now.marked = marks?.test() ?? null;
    if (now.marked && marks.hides()) found = found.filter((row) => now.marked(row) || marks.isWithout(row));
    now.order = now.column ? sorted(found, now.column, now.descending) : found;
    const rowsFound = found.length < table.rows || now.query
      ? `${found.length.toLocaleString("en")} of ${table.rows.toLocaleString("en")} rows`
      : `${table.rows.toLocaleString("en")} row${table.rows === 1 ? "" : "s"}`;
    count.textContent = [rowsFound, ...filters.map(({ unread }) => unread).filter(Boolean)].join("; ");
    view.scrollTop = 0;
    draw();
  };
  whenTyped(search, () => {
    now.query = search.value.trim();
    arrange();
    keep();
  });

  // What is asked, by column; what is asked of no field of a column has names that no column has.
  const asked = () => new URLSearchParams([
    ["/search", now.query],
    ["/sort", now.column ? `${now.descending ? "-" : ""}${now.column.name}` : ""],
    ...[...choosers].map(([column, select]) => [`=${column.name}`, select.value]),
    ...[...fields].map(([column, field]) => [column.name, field.value.trim()]),
  ].filter(([, text]) => text));
  const keep = () => kept?.write(asked());
  const restore = () => {
    const wanted = kept.read();
    if (wanted.toString() === asked().toString()) return;
    search.value = now.query = wanted.get("/search") ?? "";
    for (const [column, select] of choosers) {
      select.value = wanted.get(`=${column.name}`) ?? "";
      now.chosen.set(column, select.value);
    }
    for (const [column, field] of fields) {
      field.value = wanted.get(column.name) ?? "";
      readField(column);
    }
    const sort = wanted.get("/sort") ?? "";
    sortBy(shown.find((column) => column.name === sort.replace(/^-/, "")) ?? null, sort.startsWith("-"));
    arrange();
  };
  kept?.on(() => box.isConnected && restore());
  marks?.on(() => box.isConnected && arrange());
  let waiting = false;
  view.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }, { passive: true });
  arrange();
  if (kept) restore();
}

// Once for what is typed in one go.
function whenTyped(field, act) {
  let pending = 0;
  field.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(act, 80);
  });
}

function element(name, properties = {}, ...children) {
  const { style, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  if (style) made.style.cssText = style;
  made.append(...children);
  return made;
}

// Text is data: it becomes text nodes, never markup.
function cellOf(column, row, table) {
  const cell = element("td", { className: isNumeric(column) ? "number" : column.kind });
  const value = column.get(row);
  if (column.kind === "context") {
    const [before, after] = column.around.map((name) => table.columns.find((other) => other.name === name).get(row));
    const text = element("bdi", { dir: "auto" }, before, element("mark", { textContent: cut(value) }), after);
    cell.append(element("div", {}, text));
    return cell;
  }
  const made = column.cell?.(row);
  if (made) {
    cell.append(made);
    return cell;
  }
  const text = readable(value, column);
  if (column.kind !== "text") {
    cell.textContent = text;
    if (typeof value === "number" && text !== String(value)) cell.title = String(value);
    return cell;
  }
  const shown = element("bdi", { textContent: cut(text) });
  const href = column.href ? column.href(row) : column.link && value !== null ? `#${value}` : null;
  cell.append(href ? element("a", { href }, shown) : shown);
  if (text.length > 24) cell.title = cut(text);
  return cell;
}

function cut(text) {
  return text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text;
}

// In characters: of the header, and of what stands in some hundred rows spread over the table.
function widthOf(column, rows) {
  if (column.width) return column.width;
  let most = (column.title ?? column.name).length + 5;
  const step = Math.max(1, Math.floor(rows / 300));
  for (let row = 0; row < rows; row += step) most = Math.max(most, readable(column.get(row), column).length + 3);
  column.width = Math.min(most, 44);
  return column.width;
}

// Rows without a value stand last, however the others are sorted; equal ones keep the file's order.
function sorted(rows, column, descending) {
  const key = keyOf(column);
  const [some, none] = [[], []];
  for (const row of rows) (Number.isNaN(key[row]) ? none : some).push(row);
  const order = Uint32Array.from(some).sort(
    descending ? (one, other) => key[other] - key[one] || one - other : (one, other) => key[one] - key[other] || one - other,
  );
  const all = new Uint32Array(rows.length);
  all.set(order);
  all.set(none, order.length);
  return all;
}

function keyOf(column) {
  if (column.key) return column.key;
  if (column.levels) {
    const places = column.levels.map((_, level) => level).sort((one, other) => compare(column.levels[one], column.levels[other]));
    const rank = new Float64Array(places.length);
    places.forEach((level, place) => (rank[level] = place));
    column.key = Float64Array.from(column.codes, (code) => (code === null ? NaN : rank[code]));
  } else {
    // Infinities have no difference.
    const ends = { [Infinity]: Number.MAX_VALUE, [-Infinity]: -Number.MAX_VALUE };
    column.key = Float64Array.from(column.values, (value) => (value === null ? NaN : ends[value] ?? Number(value)));
  }
  return column.key;
}

const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);

// Rows in which every word of the query is found.
function matching(table, query) {
  let rows = Uint32Array.from({ length: table.rows }, (_, row) => row);
  for (const word of query.toLowerCase().split(/\s+/)) {
    const tests = table.columns.map((column) => finder(column, word)).filter(Boolean);
    rows = rows.filter((row) => tests.some((test) => test(row)));
  }
  return rows;
}

// Whether a row's cell has the word: text anywhere in it; a number that is the word, with or without its sign.
function finder(column, word) {
  if (column.finder) return column.finder(word);
  if (column.levels) return column.levels.some((level) => level.toLowerCase().includes(word)) ? textTest(column, word) : null;
  if (!isNumeric(column)) return (row) => readable(column.get(row), column).startsWith(word);
  if (!ONE.test(word)) return null;
  const wanted = equals(word);
  const signless = !/^[-+]/.test(word);
  return (row) => {
    const value = column.get(row);
    return value !== null && (wanted(value) || (signless && wanted(-value)));
  };
}

// A short table that stands in the page whole: its headers sort its rows.
function makeSortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.querySelectorAll("th[data-column]")];
  for (const header of headers) {
    const sorter = element("button", { type: "button" }, ...header.childNodes);
    header.append(sorter);
    sorter.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending" || (!header.hasAttribute("aria-sort") && header.classList.contains("number"));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => [sortKey(row.cells[header.dataset.column]), row]);
      keyed.sort(([one], [other]) => {
        if (one === null || other === null) return (one === null) - (other === null);
        return (descending ? -1 : 1) * (typeof one === "number" && typeof other === "number" ? one - other : compare(String(one), String(other)));
      });
      body.append(...keyed.map(([, row]) => row));
    });
  }
}

function sortKey(cell) {
  const text = (cell?.dataset.value ?? cell?.textContent ?? "").trim();
  if (text === "" || text === "–") return null;
  const value = Number(text.replace(/[,%\u00a0 ]/g, ""));
  return Number.isNaN(value) ? text : value;
}
