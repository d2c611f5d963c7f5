// Numbers as packed_values.py packs them.
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
