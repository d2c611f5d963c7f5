// Small drawings: a histogram with deciles, and curves over the layers.

const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const WIDE = 640;
const HIGH = 200;
const EDGE = { left: 62, right: 12, top: 10, bottom: 40 };
const ACROSS = WIDE - EDGE.left - EDGE.right;
const DOWN = HIGH - EDGE.top - EDGE.bottom;

function chart(label, ...children) {
  const made = drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "chart", role: "img", "aria-label": label }, ...children);
  return element("div", { className: "scroll", tabIndex: 0 }, made);
}

const words = (x, y, text, anchor = "middle") => drawn("text", { x, y, "text-anchor": anchor }, text);

// Heights go by the logarithm of the counts, which differ by orders of magnitude.
function histogramOf({ low, width, counts, deciles }) {
  const high = low + width * counts.length;
  const x = (value) => EDGE.left + (ACROSS * (value - low)) / (high - low);
  const top = Math.max(...counts);
  const y = (count) => EDGE.top + DOWN * (1 - Math.log10(1 + count) / Math.log10(1 + top));
  const bars = counts.map((count, place) => drawn(
    "rect",
    { class: "bar", x: x(low + place * width), width: Math.max(0.5, ACROSS / counts.length - 0.5), y: y(count), height: EDGE.top + DOWN - y(count) },
    drawn("title", {}, `${numberText(low + place * width)} to ${numberText(low + (place + 1) * width)}: ${count.toLocaleString("en")} positions`),
  ));
  const lines = deciles.map((value, place) => drawn(
    "line",
    { class: "decile", x1: x(value), x2: x(value), y1: EDGE.top, y2: EDGE.top + DOWN + 5 },
    drawn("title", {}, `decile ${place + 1}: about ${numberText(value)}`),
  ));
  const ticks = [];
  for (let power = 0; 10 ** power <= top; power++) {
    const at = y(10 ** power);
    ticks.push(drawn("line", { class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: at, y2: at }), words(EDGE.left - 6, at + 4, (10 ** power).toLocaleString("en"), "end"));
  }
  const ends = [low, (low + high) / 2, high].map((value, place) => words(x(value), HIGH - 20, numberText(value), ["start", "middle", "end"][place]));
  return chart("Histogram of the activation", ...ticks, ...bars, ...lines, ...ends, words(EDGE.left + ACROSS / 2, HIGH - 4, "activation; positions by logarithm"));
}

// Curves over the layers on a logarithmic scale; `curves`: [name, layers, values above 0]. A value of 0 has no point.
function curvesOf(curves, label) {
  const some = curves.flatMap(([, , values]) => values).filter((value) => value > 0);
  const last = Math.max(1, ...curves.flatMap(([, layers]) => layers));
  if (!some.length) return element("p", { className: "soft", textContent: "Every value is 0." });
  const [least, most] = [Math.floor(Math.log10(Math.min(...some))), Math.ceil(Math.log10(Math.max(...some)) + 1e-9)];
  const x = (layer) => EDGE.left + (ACROSS * layer) / last;
  const y = (value) => EDGE.top + DOWN * (1 - (Math.log10(value) - least) / Math.max(1, most - least));
  const parts = [];
  const stride = Math.ceil(Math.max(1, most - least) / 6);
  for (let power = least; power <= most; power += stride) {
    const at = y(10 ** power);
    parts.push(drawn("line", { class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: at, y2: at }), words(EDGE.left - 6, at + 4, numberText(10 ** power), "end"));
  }
  const every = Math.ceil((last + 1) / 16);
  for (let layer = 0; layer <= last; layer += every) parts.push(words(x(layer), HIGH - 22, String(layer)));
  curves.forEach(([name, layers, values], place) => {
    const points = layers.map((layer, index) => [layer, values[index]]).filter(([, value]) => value > 0);
    parts.push(drawn("polyline", { class: `curve curve-${place}`, points: points.map(([layer, value]) => `${x(layer).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
    for (const [layer, value] of points) {
      parts.push(drawn("circle", { class: `point curve-${place}`, cx: x(layer), cy: y(value), r: 3 }, drawn("title", {}, `${name}, layer ${layer}: ${numberText(value)}`)));
    }
  });
  parts.push(words(EDGE.left + ACROSS / 2, HIGH - 4, "layer"));
  const names = element("p", { className: "legend" }, ...curves.map(([name], place) => element("span", { className: `key curve-${place}`, textContent: name })));
  return element("div", {}, names, chart(label, ...parts));
}
