// What all pages have: themes, the way from page to page, and choices that the page's address keeps.

(() => {
  const root = document.documentElement;
  const switcher = document.getElementById("theme");
  const told = () => (switcher.textContent = root.dataset.theme === "dark" ? "Light theme" : "Dark theme");
  told();
  switcher.addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    told();
    try {
      localStorage.setItem("outlier-features-theme", root.dataset.theme);
    } catch {
      // Then it holds for this visit.
    }
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  // The address keeps choices, and somebody may type others.
  if (document.body.dataset.kind !== "index") addEventListener("hashchange", () => location.reload());
  let screen = root.dataset.theme;
  addEventListener("beforeprint", () => {
    screen = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => (root.dataset.theme = screen));
})();

// Where other pages lie; undefined where there are none.
const HOME = document.body.dataset.home;
const neuronName = (layer, expert, neuron) => `L${layer}${expert ? `E${expert - 1}` : ""}N${neuron}`;
const dimLink = (name, hasPage) => (hasPage && HOME !== undefined ? element("a", { href: `${HOME}${name}.html`, textContent: name }) : element("span", { textContent: name }));

async function goToRandom() {
  const { rows, layer, expert, neuron } = await beside.load("pages");
  const place = Math.floor(Math.random() * rows);
  location.href = `${neuronName(integersOf(layer)[place], integersOf(expert)[place], integersOf(neuron)[place])}.html`;
}

// Links to the pages before and after this one, which the arrow keys follow too.
function wayOf([before, after], { random = false } = {}) {
  const link = (name, text, key) => {
    if (!name || HOME === undefined) return element("span", { className: "soft", textContent: text });
    const made = element("a", { href: `${HOME}${name}.html`, textContent: `${text}: ${name}`, title: `or the key ${key}` });
    made.rel = key === "←" ? "prev" : "next";
    return made;
  };
  const made = element("p", { className: "jumps" }, link(before, "Previous", "←"), link(after, "Next", "→"));
  if (random && HOME === "") {
    const button = element("button", { type: "button", id: "random", textContent: "Random" });
    button.addEventListener("click", goToRandom);
    made.append(button);
  }
  addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest?.("input, select, textarea, .scroll, .window")) return;
    const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = rel && made.querySelector(`[rel="${rel}"]`);
    if (link) location.href = link.href;
  });
  return made;
}

// Choices in the address, as #population=all&side=max.
const choices = {
  get: (name) => new URLSearchParams(location.hash.slice(1)).get(name),
  set(name, value) {
    const all = new URLSearchParams(location.hash.slice(1));
    all.set(name, value);
    history.replaceState(null, "", `#${all}`);
  },
};

// A row of radio buttons, or a list where there are many; `change` gets the choice, now and whenever it changes.
function chooserOf(name, label, options, change) {
  const wanted = choices.get(name);
  const chosen = options.some(([value]) => value === wanted) ? wanted : options[0][0];
  const choose = (value) => {
    choices.set(name, value);
    change(value);
  };
  if (options.length > 4) {
    const select = element("select", { id: name }, ...options.map(([value, text]) => element("option", { value, textContent: text, selected: value === chosen })));
    select.addEventListener("change", () => choose(select.value));
    return [element("label", { className: "choice" }, `${label} `, select), chosen];
  }
  const set = element("fieldset", {}, element("legend", { textContent: label }));
  for (const [value, text] of options) {
    const input = element("input", { type: "radio", name, value, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    set.append(element("label", {}, input, text));
  }
  return [set, chosen];
}

// A short table: `columns` are names, `rows` cells, each text, a number or an element. Of a longer one the first rows,
// and the others on demand.
const FIRST_ROWS = 12;
function tableOf(columns, rows, label) {
  const cell = (value) => {
    if (value instanceof Node) return element("td", {}, value);
    if (typeof value === "number") return element("td", { className: "number", textContent: numberText(value) });
    return element("td", {}, element("bdi", { textContent: value ?? "–" }));
  };
  const head = element("tr", {}, ...columns.map((name, place) => element("th", { scope: "col", className: typeof rows[0]?.[place] === "number" ? "number" : "", textContent: name })));
  const lines = (some) => some.map((row) => element("tr", {}, ...row.map(cell)));
  const body = element("tbody", {}, ...lines(rows.slice(0, FIRST_ROWS)));
  const grid = element("table", {}, element("thead", {}, head), body);
  grid.setAttribute("aria-label", label);
  const box = element("div", { className: "scroll", tabIndex: 0 }, grid);
  if (rows.length <= FIRST_ROWS) return box;
  const more = element("button", { type: "button", textContent: `All ${rows.length} rows` });
  more.addEventListener("click", () => {
    body.append(...lines(rows.slice(FIRST_ROWS)));
    more.remove();
  });
  return element("div", {}, box, more);
}

function sectionOf(title, ...children) {
  return element("section", {}, element("h2", { textContent: title }), ...children);
}

const caption = (text) => element("p", { className: "caption", textContent: text });

// What cannot be shown says so where it would stand.
async function filling(box, make) {
  try {
    box.replaceChildren(...[await make()].flat());
  } catch (error) {
    box.replaceChildren(element("p", { className: "notice", textContent: error.message }));
  }
}
