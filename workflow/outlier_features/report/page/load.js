// Data that lie beside the page, each in a script of its own that hands them to `take`; loaded when they are asked for.
const beside = (() => {
  const asked = new Map();
  const load = (name) => {
    if (!asked.has(name)) {
      const file = `${document.body.dataset.beside}${name.split("/").map(encodeURIComponent).join("/")}.js`;
      const script = document.createElement("script");
      const promise = new Promise((resolve, reject) => {
        script.taken = resolve;
        script.addEventListener("error", () => reject(new Error(`${decodeURIComponent(file)}, which belongs beside this page, is missing`)));
        script.addEventListener("load", () => reject(new Error(`${decodeURIComponent(file)} holds other data`)));
      });
      asked.set(name, { script, promise });
      script.src = file;
      document.head.append(script);
    }
    return asked.get(name).promise;
  };
  const take = (name, content) => asked.get(name)?.script.taken(content);
  return { load, take };
})();
