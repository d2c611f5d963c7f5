// Before anything is painted: the theme that the link names, else the one that was chosen, else the system's.
(() => {
  let chosen = new URLSearchParams(location.hash.split("?")[1]).get("theme");
  try {
    chosen ??= localStorage.getItem("outlier-features-theme");
  } catch {
    // Without storage the system's theme holds.
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.classList.add("scripted");
})();
