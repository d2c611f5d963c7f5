// Text, token by token, each coloured by a value: one colour above 0, another below, stronger the larger it is.

const LONG_TOKEN = 80;

// How strong a colour is: a value's part of the limit, or the root of it, which lets small ones be seen beside large.
const STRENGTHS = { linear: (part) => part, root: Math.sqrt };

function colour(token, value, limit, strength) {
  const known = value !== undefined && !Number.isNaN(value);
  token.className = known && value !== 0 ? `token ${value > 0 ? "above" : "below"}` : "token";
  const part = known && limit > 0 ? Math.min(1, Math.abs(value) / limit) : 0;
  token.style.setProperty("--strength", (100 * STRENGTHS[strength](part)).toFixed(2));
}

// Tokens `first` to `end` of a sequence. `values`: of these tokens, or null; `marked`: the position of one that stands out.
// With `lines` a line of the text is a line of the page.
function tokensOf(pieces, first, end, { values, limit, strength, marked, lines, what }) {
  const box = element("div", { className: "text", tabIndex: 0, dir: "auto" });
  const told = element("output", { className: "told" });
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Text; the arrow keys go from token to token");
  const tokens = [];
  if (first > 0) box.append(element("span", { className: "soft", textContent: "… " }));
  const tell = (position) => {
    const value = values?.[position - first];
    const said = value === undefined ? "" : Number.isNaN(value) ? `, ${what}: not given this token` : `, ${what} ${numberText(value)}`;
    told.textContent = `position ${position}, ${cut(pieces[position] || "no text")}${said}`;
    tokens.forEach((token, place) => token.toggleAttribute("data-chosen", place === position - first));
  };
  for (let position = first; position < end; position++) {
    const token = element("span");
    colour(token, values?.[position - first], limit, strength);
    const piece = pieces[position];
    fill(token, piece, lines);
    if (position === marked) token.classList.add("marked");
    token.title = `position ${position}${values && !Number.isNaN(values[position - first]) ? `: ${numberText(values[position - first])}` : ""}`;
    token.addEventListener("click", () => tell(position));
    tokens.push(token);
    box.append(token);
  }
  if (end < pieces.length) box.append(element("span", { className: "soft", textContent: " …" }));
  let place = Math.max(0, (marked ?? first) - first);
  let begun = false;
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (begun) place = Math.min(tokens.length - 1, Math.max(0, place + step));
    begun = true;
    tell(first + place);
  });
  return element("div", { className: "reading" }, box, told);
}

// A long token is shortened, with the rest on demand. With `lines` a line ends where its symbol stands.
function fill(token, piece, lines) {
  const write = (text) => (lines ? text.split(/(?<=⏎)/).flatMap((part) => (part.endsWith("⏎") ? [part, element("br")] : [part])) : [text]);
  if (piece === "") {
    token.classList.add("textless");
    token.append("∅");
    return;
  }
  const characters = piece.length > LONG_TOKEN ? [...piece] : piece;
  if (characters.length <= LONG_TOKEN) {
    token.append(...write(piece));
    return;
  }
  const more = element("button", { type: "button", className: "more", textContent: `… ${characters.length.toLocaleString("en")} characters` });
  more.addEventListener("click", (event) => {
    event.stopPropagation();
    token.replaceChildren(...write(piece));
  });
  token.append(...write(characters.slice(0, LONG_TOKEN - 1).join("")), more);
}

// Ways to colour text by values some of which may be far from all others.
const COLOURS = [["root", "by the square root"], ["linear", "by value"], ["most", "by value, full at the 99th percentile"]];

// What the strongest colours stand for, of arrays of values.
function limitOf(arrays, colours) {
  const sizes = Float64Array.from(arrays.flatMap((one) => [...one]).filter((value) => !Number.isNaN(value)), Math.abs).sort();
  return sizes.length ? sizes[colours === "most" ? Math.floor(0.99 * (sizes.length - 1)) : sizes.length - 1] : 0;
}

const strengthOf = (colours) => (colours === "root" ? "root" : "linear");

// What colours stand for; `signed`: there are values below 0.
function legendOf(limit, strength, what, signed = true) {
  const scale = element("span", { className: "scale" });
  scale.setAttribute("aria-hidden", "true");
  for (let step = signed ? -8 : 0; step <= 8; step++) {
    const cell = element("span");
    colour(cell, (step / 8) * limit, limit, strength);
    scale.append(cell);
  }
  const words = strength === "root" ? ", by the square root" : "";
  return element("p", { className: "legend" },
    element("span", { textContent: numberText(signed ? -limit : 0) }), scale, element("span", { textContent: numberText(limit) }),
    element("span", { className: "soft", textContent: `${what}${words}` }));
}
