// The page of a sequence: its text, coloured by what is chosen.
filling(document.getElementById("content"), async () => {
  const data = await beside.load(document.body.dataset.name);
  const layersOf = new Map(data.of);
  const state = {};
  const box = element("div");
  const legend = element("div");
  const layers = element("div");
  const LOSS = "loss";

  const show = () => filling(box, async () => {
    const { pieces, losses } = await beside.load(`${data.name}T`);
    let [values, limit, what] = [null, 0, ""];
    if (state.of === LOSS) {
      values = halvesOf(losses);
      limit = limitOf([values], state.colours);
      what = "loss of the token, in nats";
    } else {
      const packed = await beside.load(`${state.of}L${state.layer}`);
      values = halvesOf(packed[data.name]);
      limit = limitOf(Object.values(packed).map(halvesOf), state.colours);
      what = `${state.of === "norm" ? "norm" : `x of dimension ${state.of.slice(1)}`} on resid_post of layer ${state.layer}; one scale for all sequences`;
    }
    const strength = strengthOf(state.colours);
    legend.replaceChildren(legendOf(limit, strength, what, values.some((value) => value < 0)));
    return tokensOf(pieces, 0, pieces.length, { values, limit, strength, lines: true, what: state.of === LOSS ? "loss" : state.of === "norm" ? "norm" : "x" });
  });
  const choose = (key) => (value) => {
    state[key] = value;
    if (key === "of") chooseLayer();
    show();
  };
  const chooseLayer = () => {
    if (!layersOf.has(state.of)) {
      layers.replaceChildren();
      return;
    }
    const [chooser, layer] = chooserOf("layer", "Layer", layersOf.get(state.of).map((one) => [String(one), String(one)]), choose("layer"));
    layers.replaceChildren(chooser);
    state.layer = layer;
  };
  const options = [...data.of.map(([name]) => [name, name === "norm" ? "the norm" : `dimension ${name.slice(1)}`]), ...(data.has_losses ? [[LOSS, "the loss"]] : [])];
  const [of, chosen] = chooserOf("of", "Colour by", options, choose("of"));
  const [ways, colours] = chooserOf("colours", "Colours", COLOURS, choose("colours"));
  Object.assign(state, { of: chosen, colours });
  chooseLayer();
  show();
  return [wayOf(data.around), element("div", { className: "bar sticky" }, of, layers, ways), legend, box,
    caption(`${data.tokens.toLocaleString("en")} tokens. A click on one, or the arrow keys in the text, say its value.`)];
});
