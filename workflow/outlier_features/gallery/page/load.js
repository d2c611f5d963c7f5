// Data that lie beside the page, each in a script of its own that hands them to `take`; loaded when they are asked for.
const gallery = (() => {
  const asked = new Map();
  const load = (name) => {
    if (!asked.has(name)) {
      const script = document.createElement("script");
      const promise = new Promise((resolve, reject) => {
        script.taken = resolve;
        script.addEventListener("error", () => reject(new Error(`data/${name}.js is missing`)));
        script.addEventListener("load", () => reject(new Error(`data/${name}.js holds other data`)));
      });
      asked.set(name, { script, promise });
      script.src = `data/${name}.js`;
      document.head.append(script);
    }
    return asked.get(name).promise;
  };
  const take = (name, content) => asked.get(name)?.script.taken(content);
  return { load, take };
})();

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const integersOf = (text) => new Uint32Array(bytesOf(text).buffer);
const floatsOf = (text) => new Float32Array(bytesOf(text).buffer);

// 16-bit floats over a scale, as packed_values.halves packs them.
function halvesOf({ scale, halves }) {
  const codes = new Uint16Array(bytesOf(halves).buffer);
  return Float64Array.from(codes, (code) => {
    const sign = code & 0x8000 ? -1 : 1;
    const exponent = (code >> 10) & 31;
    const fraction = (code & 1023) / 1024;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * scale * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  });
}

const NUMBER = { kind: "number" };
const INTEGER = { kind: "integer", unit: "tokens" };
const numberText = (value) => readable(value, Number.isInteger(value) && Math.abs(value) < 1e15 ? INTEGER : NUMBER);
