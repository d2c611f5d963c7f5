// Figures: <figure class="drawing"> with a plot, a choice of views (populations) and buttons that save it.
// Nothing here knows of the page around a figure.

const CONFIG = {
  responsive: true,
  displaylogo: false,
  typesetMath: false,
  plotlyServerURL: "",
  // Named one by one: plotly's own choice has a button that sends the figure to its makers.
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

// A picture that does nothing.
const STILL = { ...CONFIG, staticPlot: true, responsive: false };

// In the dark theme the inks of figures/style.py, and what else is black, white or pale, change to these.
const DARK = {
  "#222222": "#E6E6E6", black: "#E6E6E6", "#000000": "#E6E6E6",
  "#767676": "#A6A6A6",
  "#bf8300": "#E69F00", "#3b97ce": "#56B4E9",
  "#e4e4e4": "#3A3E46",
  "#ededed": "#2A2E35",
  "#e3e3e3": "#3A3E46",
  "#b5b5b5": "#5E656F",
  white: "#17191D", "#ffffff": "#17191D",
};
// Cells have colours of their own, and text on them stands on those.
const OWN_COLOURS = new Set(["heatmap", "surface", "contour"]);

function themed({ data, layout }) {
  // A menu's or a zoom's state belongs to the reader, not to a view: it is kept while views change.
  layout.uirevision = "kept";
  // What a figure stands on shows through it.
  layout.paper_bgcolor = "rgba(0, 0, 0, 0)";
  if (document.documentElement.dataset.theme !== "dark") return { data, layout };
  return {
    data: data.map((trace) => (OWN_COLOURS.has(trace.type) ? { ...trace, colorbar: darkened(trace.colorbar) } : darkened(trace))),
    layout: darkened(layout),
  };
}

function darkened(value) {
  if (typeof value === "string") return DARK[value.toLowerCase()] ?? value;
  if (Array.isArray(value)) return value.map(darkened);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, darkened(entry)]));
}

// A page may change what is drawn, for what its reader chose.
let beforeDrawing = (figure) => figure;

// Draws the view that `box.dataset.view` names, at once; of the width of its box, or of `width` pixels.
// views: a JSON object from their names to the ids of their data, which are in the page or beside it.
async function drawFigure(box, width) {
  box.dataset.state = "drawing";
  try {
    while (!isPrepared(box)) await prepare(box); // at once if it is: a page that is about to be printed does not wait
    const view = box.dataset.view;
    if (!box.checkVisibility()) { // the reader has gone on; plotly would find no room
      delete box.dataset.state;
      return;
    }
    const { data, layout } = themed(beforeDrawing(viewOf(box)));
    if (layout.height) box.style.height = `${layout.height}px`;
    await Plotly.react(box, data, width ? { ...layout, width } : layout, "still" in box.dataset ? STILL : CONFIG);
    if (box.dataset.view !== view) return await drawFigure(box, width); // another was chosen meanwhile
    box.dataset.state = "drawn";
    box.dispatchEvent(new Event("drawn", { bubbles: true }));
  } catch (error) {
    box.dataset.state = "failed";
    box.textContent = `This figure could not be drawn: ${error}`;
  }
}

const idOf = (box) => JSON.parse(box.dataset.views)[box.dataset.view];
const titleOf = (box) => JSON.parse(box.dataset.titles)[box.dataset.view];

// What views are, as JSON, since drawing changes what it is given; of those in the page, and of those that were loaded.
const views = new Map();
async function prepare(box) {
  const id = idOf(box);
  const [text] = await Promise.all([document.getElementById(id)?.textContent ?? unpackText(id), plotly()]);
  views.set(id, text);
}
const isPrepared = (box) => views.has(idOf(box)) && window.Plotly;
const viewOf = (box) => JSON.parse(views.get(idOf(box)));

// Plotly, which takes a page longest to load: where the page says from where, when the first figure is drawn.
let loading = null;
function plotly() {
  const { plotly: source } = document.body.dataset;
  if (window.Plotly || !source) return null;
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => reject(new Error(`${source}, which belongs beside this page, is missing`)));
    script.src = source;
    document.head.append(script);
  });
  return loading;
}

function chooseView(figure, view, draw = drawFigure) {
  const box = figure.querySelector(".plot");
  if (!box || !(view in JSON.parse(box.dataset.views))) return;
  for (const button of figure.querySelectorAll(".views input")) button.checked = button.value === view;
  if (box.dataset.view === view) return;
  box.dataset.view = view;
  figure.querySelector(".population").textContent = titleOf(box);
  // One that waits, or is being drawn, comes to it by itself: plotly draws a figure once at a time.
  if (["drawn", "failed"].includes(box.dataset.state)) draw(box);
}

// A browser lets a page save only shortly after a click, so what is being saved goes before what is yet to be drawn.
let saving = Promise.resolve();

// What stands beside a figure in a page, and is lost where an image is all that a reader has.
const ABOVE = 50; // pixels of it
function addTitle(layout, title, page) {
  const [first, second] = [title, page].map((text) => text.replace(/[&<>]/g, (found) => `&#${found.charCodeAt(0)};`));
  layout.title = {
    text: `<b>${first}</b><br><span style="font-size: 12px">${second}</span>`, font: { size: 14 },
    x: 0, xanchor: "left", y: 1, yref: "container", yanchor: "top", pad: { l: 12, t: 12 },
  };
  layout.margin = { ...layout.margin, t: (layout.margin?.t ?? 0) + ABOVE };
  if (layout.height) layout.height += ABOVE;
}

async function saveFigure(figure, format) {
  const box = figure.querySelector(".plot");
  const name = `${figure.dataset.file}${format === "csv" || Object.keys(JSON.parse(box.dataset.views)).length < 2 ? "" : `-${box.dataset.view}`}.${format}`;
  if (format === "csv") {
    save(csv(await unpackTable(figure.dataset.table)), "text/csv", name);
    return;
  }
  // As for print, whatever the theme.
  await prepare(box);
  const { data, layout } = beforeDrawing(viewOf(box));
  const size = { width: Math.max(box.clientWidth, 640), height: (layout.height ?? box.clientHeight) + ABOVE };
  addTitle(layout, box.ariaLabel, figure.closest("[data-title]")?.dataset.title ?? document.title);
  saveUrl(await Plotly.toImage({ data, layout, config: CONFIG }, { format, ...size, scale: format === "png" ? 2 : 1 }), name);
}

function bindFigure(figure) {
  const box = figure.querySelector(".plot");
  if (!box) return;
  for (const input of figure.querySelectorAll(".views input")) {
    if (input.checked !== input.defaultChecked) input.checked = input.defaultChecked;
    input.addEventListener("change", () => chooseView(figure, input.value));
  }
  if (Object.keys(JSON.parse(box.dataset.views)).length > 1) figure.querySelector(".population").textContent = titleOf(box);
  for (const button of figure.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => {
      saving = saveFigure(figure, button.dataset.save);
    });
  }
}
