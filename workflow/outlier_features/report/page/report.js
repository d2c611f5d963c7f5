// The page: which part of it is shown, where the reader is, its theme, and when figures and tables are made.
(() => {
  const root = document.documentElement;
  const pages = [...document.querySelectorAll(".page")];
  const boxes = [...document.querySelectorAll(".plot")];
  const nav = document.getElementById("contents");
  const menu = document.getElementById("menu");

  // Pages. A place is `page` or `page/section`, the id of what it leads to, whatever else the report holds.
  const show = (name, moved) => {
    const target = document.getElementById(name);
    const page = target?.closest(".page") ?? (moved ? null : pages[0]);
    if (!page) return;
    for (const other of pages) other.hidden = other !== page;
    root.classList.add("ready");
    for (const group of nav.querySelectorAll("[data-of]")) group.hidden = ![page.id, page.dataset.run].includes(group.dataset.of);
    document.title = page.dataset.title;
    for (let box = target; box && box !== page; box = box.parentElement) if (box instanceof HTMLDetailsElement) box.open = true;
    // A table that the address asks something of is seen, too.
    for (const box of page.querySelectorAll("details .rows")) if (keptOf(box).read().toString()) box.closest("details").open = true;
    choose(page);
    if (target && target !== page) target.scrollIntoView();
    else if (moved) scrollTo(0, 0);
    const goal = target instanceof HTMLDetailsElement ? target.querySelector("summary") : target ?? page;
    if (moved) goal.focus({ preventScroll: true });
    fit(page);
    mark();
    // The first figure is ready when the reader comes to it.
    const first = page.querySelector(".plot");
    if (first && !first.dataset.state) draw(first);
    prepareAll();
  };
  const fit = (page) => {
    for (const box of page.querySelectorAll('.plot[data-state="drawn"]')) {
      if (box._fullLayout && Math.abs(box._fullLayout.width - box.clientWidth) > 1) Plotly.Plots.resize(box);
    }
  };
  state.on("place", (name) => {
    show(name, true);
    setMenu(false);
  });

  // Where the reader is, marked among the contents.
  const links = [...nav.querySelectorAll("a")];
  const mark = () => {
    const page = pages.find((candidate) => !candidate.hidden);
    let here = null;
    for (const link of links) {
      link.removeAttribute("aria-current");
      const id = decodeURIComponent(link.hash.slice(1));
      if (id === page.id) link.setAttribute("aria-current", "page");
      const section = document.getElementById(id);
      if (section !== page && page.contains(section) && section.getBoundingClientRect().top < innerHeight / 3) here = link;
    }
    here?.setAttribute("aria-current", "location");
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      mark();
    });
  }, { passive: true });

  // On a small screen the contents open on request.
  const setMenu = (open) => {
    menu.setAttribute("aria-expanded", open);
    nav.classList.toggle("open", open);
  };
  menu.addEventListener("click", () => setMenu(menu.getAttribute("aria-expanded") !== "true"));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && menu.getAttribute("aria-expanded") === "true") {
      setMenu(false);
      menu.focus();
    }
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.querySelector("main").focus();
  });

  // Themes: the button names the other one.
  const switcher = document.getElementById("theme");
  const other = () => (root.dataset.theme === "dark" ? "light" : "dark");
  const name = () => (switcher.textContent = other() === "dark" ? "Dark theme" : "Light theme");
  const setTheme = (theme) => {
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    name();
    redraw();
  };
  const redraw = () => boxes.filter((box) => box.dataset.state).forEach((box) => {
    if (box.closest("[hidden]")) delete box.dataset.state; // drawn when it is seen again
    else drawFigure(box);
  });
  name();
  state.on("theme", (theme) => theme && setTheme(theme === "dark" ? "dark" : "light"));
  switcher.addEventListener("click", () => {
    const chosen = other();
    try {
      localStorage.setItem("outlier-features-theme", chosen);
    } catch {
      // Then the address has it.
    }
    state.set("theme", chosen);
    setTheme(chosen);
  });

  // The population: one choice for all figures.
  const populations = document.getElementById("populations");
  const choose = (page) => {
    const several = [...page.querySelectorAll(".plot")].some((box) => Object.keys(JSON.parse(box.dataset.views)).length > 1);
    if (!populations) return;
    populations.classList.toggle("unused", !several);
    const chosen = [...populations.querySelectorAll("input")].find((input) => input.value === (state.get("population") ?? input.value));
    if (!chosen) return;
    chosen.checked = true;
    for (const figure of page.querySelectorAll("figure.drawing")) chooseView(figure, chosen.value, draw);
  };
  for (const input of populations?.querySelectorAll("input") ?? []) {
    input.addEventListener("change", () => state.set("population", input.value));
  }
  state.on("population", () => choose(pages.find((page) => !page.hidden)));

  // Figures: drawn when they come near the window, all of the page before it is printed.
  document.querySelectorAll("figure.drawing").forEach(bindFigure);
  const watch = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting && !entry.target.dataset.state).forEach((entry) => draw(entry.target)),
    { rootMargin: "800px" },
  );
  // One after the other, with a pause in which the page answers.
  let queue = Promise.resolve();
  const draw = (box) => {
    box.dataset.state = "waiting";
    queue = queue.then(() => saving.catch(() => {})).then(() => drawFigure(box)).then(() => {
      if (!performance.getEntriesByName("first figure").length) performance.mark("first figure");
      return new Promise((next) => setTimeout(next));
    });
  };
  // What the page shows further down is loaded meanwhile, or it could not be printed.
  const prepareAll = () => queue = queue.then(() => Promise.allSettled(shown().map(prepare)));

  // Print is light, and has every figure of the page, as wide as paper; a tall one smaller, so that two fill a page.
  const PAPER = 680;
  const HALF_PAGE = 390;
  const SMALLEST = 0.6;
  let screenTheme = root.dataset.theme;
  let folded = [];
  const shown = () => boxes.filter((box) => !box.closest("[hidden]"));
  addEventListener("beforeprint", () => {
    screenTheme = root.dataset.theme;
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll(".page:not([hidden]) details:is(.findings, .reading):not([open])")];
    for (const details of folded) details.open = true;
    for (const box of shown()) {
      const width = Math.max(PAPER, parseInt(box.style.minWidth) || 0);
      const height = (parseInt(box.style.height) * PAPER) / width;
      box.style.zoom = (PAPER / width) * Math.max(Math.min(1, HALF_PAGE / height), SMALLEST);
      drawFigure(box, width);
    }
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = screenTheme;
    for (const details of folded) details.open = false;
    for (const box of shown()) {
      box.style.zoom = "";
      drawFigure(box);
    }
  });

  // Tables are made when they come near the window; those in <details> do when it is opened.
  const tables = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
      tables.unobserve(target);
      makeTable(target).catch((error) => target.prepend(element("p", { className: "notice", textContent: error.message })));
    }),
    { rootMargin: "400px" },
  );
  document.querySelectorAll(".rows").forEach((box) => tables.observe(box));
  document.querySelectorAll("table.sortable").forEach(makeSortable);

  show(state.get("place"), false);
  boxes.forEach((box) => watch.observe(box));
})();
