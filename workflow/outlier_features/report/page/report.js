// The page: which part of it is shown, where the reader is, its theme, and when figures and tables are made.
(() => {
  const root = document.documentElement;
  const pages = [...document.querySelectorAll(".page")];
  const boxes = [...document.querySelectorAll(".plot")];
  const nav = document.getElementById("contents");
  const menu = document.getElementById("menu");

  // Pages. A link is `#page` or `#page/section`, the id of what it leads to, whatever else the report holds.
  const show = (hash, moved) => {
    const target = document.getElementById(decodeURIComponent(hash.slice(1)));
    const page = target?.closest(".page") ?? (moved ? null : pages[0]);
    if (!page) return;
    for (const other of pages) other.hidden = other !== page;
    for (const group of nav.querySelectorAll(".parts")) group.hidden = group.dataset.page !== page.id;
    document.title = page.dataset.title;
    if (target instanceof HTMLDetailsElement) target.open = true;
    if (target && target !== page) target.scrollIntoView();
    else if (moved) scrollTo(0, 0);
    const place = target instanceof HTMLDetailsElement ? target.querySelector("summary") : target ?? page;
    if (moved) place.focus({ preventScroll: true });
    fit(page);
    mark();
    // The first figure is ready when the reader comes to it.
    const first = page.querySelector(".plot");
    if (first && !first.dataset.state) draw(first);
  };
  const fit = (page) => {
    for (const box of page.querySelectorAll('.plot[data-state="drawn"]')) {
      if (box._fullLayout && Math.abs(box._fullLayout.width - box.clientWidth) > 1) Plotly.Plots.resize(box);
    }
  };
  addEventListener("hashchange", () => {
    show(location.hash, true);
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

  // Themes.
  const switcher = document.getElementById("theme");
  const setTheme = (theme) => {
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    switcher.setAttribute("aria-pressed", theme === "dark");
    redraw();
  };
  const redraw = () => boxes.filter((box) => box.dataset.state).forEach((box) => {
    if (box.closest("[hidden]")) delete box.dataset.state; // drawn when it is seen again
    else drawFigure(box);
  });
  switcher.setAttribute("aria-pressed", root.dataset.theme === "dark");
  switcher.addEventListener("click", () => {
    const chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("outlier-features-theme", chosen);
    } catch {
      // Then it holds for this visit.
    }
    setTheme(chosen);
  });

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
  for (const input of document.querySelectorAll(".all-views input")) {
    input.addEventListener("change", () => {
      for (const figure of input.closest(".page").querySelectorAll("figure.drawing")) chooseView(figure, input.value);
    });
  }

  // Print is light, and has every figure of the page, as wide as paper.
  const PAPER = 680;
  let screenTheme = root.dataset.theme;
  let folded = [];
  const shown = () => boxes.filter((box) => !box.closest("[hidden]"));
  addEventListener("beforeprint", () => {
    screenTheme = root.dataset.theme;
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll(".page:not([hidden]) details.findings:not([open])")];
    for (const details of folded) details.open = true;
    for (const box of shown()) {
      const width = Math.max(PAPER, parseInt(box.style.minWidth) || 0);
      box.style.zoom = PAPER / width;
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
      makeTable(target);
    }),
    { rootMargin: "400px" },
  );
  document.querySelectorAll(".rows").forEach((box) => tables.observe(box));
  document.querySelectorAll("table.sortable").forEach(makeSortable);

  show(location.hash, false);
  boxes.forEach((box) => watch.observe(box));
})();
