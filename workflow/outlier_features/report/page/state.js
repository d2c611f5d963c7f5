// What a link to the report carries: a place in it, and what its reader chose: `#place?population=all&dims=507`.
// A choice is text under a key; whoever shows it listens for it. A link that names no choices leaves those there are.
const state = (() => {
  const listeners = new Map();
  let place = "";
  let chosen = new Map();
  let known = ""; // the address as it was last read or written

  const parsed = () => {
    const [name, choices] = location.hash.slice(1).split(/\?(.*)/s);
    return { name: decoded(name), choices: choices === undefined ? null : new Map(new URLSearchParams(choices)) };
  };
  const decoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // somebody typed it
    }
  };
  const hash = (name = place) => {
    const choices = new URLSearchParams([...chosen]).toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
    return name || choices ? `#${encodeURI(name)}${choices ? `?${choices}` : ""}` : "";
  };
  const write = () => {
    if (location.hash !== hash()) history.replaceState(history.state, "", hash() || location.pathname);
    known = location.hash;
  };
  const tell = (keys) => {
    for (const key of keys) for (const listener of listeners.get(key) ?? []) listener(get(key));
  };
  const get = (key) => (key === "place" ? place : chosen.get(key) ?? null);
  // With null there is no choice any more.
  const set = (key, value) => {
    follow(); // a link was followed just now, of which the browser is yet to tell
    if (get(key) === value) return;
    if (value === null) chosen.delete(key);
    else chosen.set(key, value);
    write();
    tell([key]);
  };
  const on = (key, listener) => listeners.set(key, [...(listeners.get(key) ?? []), listener]);

  const take = () => {
    const { name, choices } = parsed();
    const before = chosen;
    chosen = choices ?? chosen;
    place = name;
    write();
    const keys = new Set([...before.keys(), ...chosen.keys()]);
    return [...keys].filter((key) => before.get(key) !== chosen.get(key));
  };
  const follow = () => {
    if (location.hash !== known) tell([...take(), "place"]);
  };
  addEventListener("hashchange", follow);
  take();
  return { get, set, on, hash };
})();

// What is asked of a table: one choice, under the table's place, so that each table keeps its own.
function keptOf(box) {
  const place = box.dataset.table?.replace(/\/rows$/, "");
  if (!place) return null; // one of a panel, which is gone when the panel is
  return {
    read: () => new URLSearchParams(state.get(place) ?? ""),
    write: (asked) => state.set(place, asked.toString() || null),
    on: (listener) => state.on(place, listener),
  };
}
