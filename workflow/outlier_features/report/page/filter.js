// What the field of a column asks for, as a test of rows: text by a part of it; a number by its value, a list or a range.

const NUMBER_ASKED = String.raw`[-+]?(?:(?:\d[\d,]*)?\.?\d+(?:e[-+]?\d+)?|∞|inf)`;
const ONE = new RegExp(`^${NUMBER_ASKED}$`, "i");
const COMPARED = new RegExp(`^(>=|<=|!=|=|>|<)(${NUMBER_ASKED})$`, "i");
const RANGE = new RegExp(`^(${NUMBER_ASKED})?\\.\\.(${NUMBER_ASKED})?$`, "i");
const COMPARISONS = {
  ">": (value, bound) => value > bound,
  "<": (value, bound) => value < bound,
  ">=": (value, bound) => value >= bound,
  "<=": (value, bound) => value <= bound,
};
const NUMBERS_SAY = "A number (507), several (507, 247), a range (5..10) or a bound (>= 100); – finds rows without a value";
const TEXT_SAYS = "Any part of the text, in small or capital letters; – finds rows without a value";

const isNumeric = (column) => column.kind === "integer" || column.kind === "number";
// An index, such as of a dim: it is written without commas between thousands.
const isIndex = (column) => column.kind === "integer" && !column.unit;
const filterSays = (column) => (isNumeric(column) ? NUMBERS_SAY : TEXT_SAYS);

// A test of rows, by their number, of what `text` asks of a column; nothing where it asks for nothing, or cannot be read.
function columnFilter(column, text) {
  const asked = text.trim().toLowerCase();
  if (!asked) return null;
  if (asked === "–" || asked === "-") return (row) => column.get(row) === null;
  if (!isNumeric(column)) return column.finder?.(asked) ?? textTest(column, asked);
  const test = numberTest(asked, column);
  return test && ((row) => {
    const value = column.get(row);
    return value !== null && test(value);
  });
}

function textTest(column, asked) {
  if (column.levels) {
    const has = column.levels.map((level) => level.toLowerCase().includes(asked));
    return (row) => has[column.codes[row]] === true;
  }
  return (row) => readable(column.get(row), column).toLowerCase().includes(asked);
}

// Of bounds all must hold, of numbers and ranges one.
function numberTest(asked, column) {
  const spaced = asked.replaceAll("−", "-").replaceAll("≥", ">=").replaceAll("≤", "<=").replace(/\s*(\.\.|[<>=!]+)\s*/g, "$1").replace(/(\d)([<>!]|=)/g, "$1 $2");
  // 24,728 is one number in a column that writes it so.
  const parts = spaced.split(isIndex(column) ? /[,;\s]+/ : /[;\s]+|,(?!\d{3}(?!\d))/).filter(Boolean);
  const [all, some] = [[], []];
  for (const part of parts) {
    const [, sign, bound] = part.match(COMPARED) ?? [];
    const [range, low, high] = part.match(RANGE) ?? [];
    if (sign === "!=") all.push(negated(equals(bound)));
    else if (sign in COMPARISONS) all.push(compared(sign, numberOf(bound)));
    else if (sign || ONE.test(part)) some.push(equals(bound ?? part));
    else if (range && (low || high)) some.push(between(low, high));
    else return null;
  }
  return (value) => all.every((test) => test(value)) && (!some.length || some.some((test) => test(value)));
}

const negated = (test) => (value) => !test(value);
const compared = (sign, bound) => (value) => COMPARISONS[sign](value, bound);

function between(low, high) {
  const [least, most] = [low === undefined ? -Infinity : numberOf(low), high === undefined ? Infinity : numberOf(high)];
  return (value) => value >= least && value <= most;
}

// Values that are written so: 247 itself, and 0.123 for what rounds to it.
function equals(text) {
  const wanted = numberOf(text);
  const [, digits = "", exponent = "0"] = text.match(/(?:\.(\d+))?(?:e([-+]?\d+))?$/i);
  const half = 0.5 * 10 ** (Number(exponent) - digits.length) * (1 + 1e-9);
  return Number.isFinite(wanted) ? (value) => value === wanted || (!Number.isInteger(value) && Math.abs(value - wanted) <= half) : (value) => value === wanted;
}

function numberOf(text) {
  const infinite = text.match(/^([-+]?)(?:∞|inf)$/i);
  return infinite ? (infinite[1] === "-" ? -Infinity : Infinity) : Number(text.replaceAll(",", ""));
}
