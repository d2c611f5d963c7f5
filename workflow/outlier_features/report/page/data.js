// Data, packed as gzipped JSON in base64, and files that are made of them.

// Of an element of the page, else of what lies beside it by that name.
async function unpackText(id) {
  const text = document.getElementById(id)?.textContent ?? (await beside.load(id));
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const unpack = async (id) => JSON.parse(await unpackText(id));

// JSON has no names for these numbers.
const NOT_FINITE = { NaN: NaN, inf: Infinity, "-inf": -Infinity };

// A packed table: its columns, each with values, or with levels and the index of each row's level.
async function unpackTable(id) {
  const table = await unpack(id);
  for (const column of table.columns) {
    if (column.levels) {
      column.get = (row) => (column.codes[row] === null ? null : column.levels[column.codes[row]]);
      continue;
    }
    if (column.kind === "number") column.values = column.values.map((value) => NOT_FINITE[value] ?? value);
    column.get = (row) => column.values[row];
  }
  return table;
}

// Exact, by RFC 4180: numbers in their shortest form that reads back as the same double, null as an empty cell.
function csv({ columns, rows }) {
  const lines = [columns.map((column) => cell(column.name)).join(",")];
  for (let row = 0; row < rows; row++) lines.push(columns.map((column) => cell(column.get(row))).join(","));
  return `${lines.join("\r\n")}\r\n`;
}

// A spreadsheet runs text that begins like a formula: such text gets an apostrophe before it, and so does text that
// already has one there, so that taking one away from cells that match /^'+[=+\-@\t\r]/ gives back what was.
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") {
    if (Number.isFinite(value)) return Object.is(value, -0) ? "-0.0" : String(value);
    return Number.isNaN(value) ? "NaN" : value > 0 ? "inf" : "-inf";
  }
  const text = String(value).replace(/^(?='*[=+\-@\t\r])/, "'");
  return /[",\r\n]/.test(text) || text === "" ? `"${text.replaceAll('"', '""')}"` : text;
}

function save(content, type, name) {
  saveUrl(URL.createObjectURL(new Blob([content], { type })), name);
}

function saveUrl(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
