// The page of a dimension.
filling(document.getElementById("content"), async () => {
  const data = await beside.load(document.body.dataset.name);
  const parts = [wayOf(data.around)];

  if (data.selected.length) {
    parts.push(sectionOf("Selected by", tableOf(["Population", "Rule", "Sites", "Kind", "Max |x|", "Layers", "Steps up", "Steps down"],
      data.selected.map((row) => [data.populations[row.population], row.rule, row.sites.replaceAll("+", " + "), row.kind, row.max_abs, `${row.first_layer} to ${row.last_layer}`, row.step_up, row.step_down]), "Selected by")));
  } else {
    parts.push(element("p", { className: "notice", textContent: "No rule selects this dimension." }));
  }
  if (data.curves.length) {
    const box = element("div");
    const sites = [...new Set(data.curves.map((one) => one.site))].reverse();
    const draw = (site) => box.replaceChildren(curvesOf(data.curves.filter((one) => one.site === site).map((one) => [data.populations[one.population], one.layer, one.max_abs]), `Largest |x| on ${site} by layer`));
    const [chooser, site] = chooserOf("site", "Site", sites.map((one) => [one, one]), draw);
    draw(site);
    parts.push(sectionOf("Over the layers", chooser, box, caption("Largest |x| over the run's positions, on a logarithmic scale.")));
  }

  // Text
  if (data.layers.length) {
    const box = element("div");
    const legend = element("div");
    const state = {};
    const show = () => filling(box, async () => {
      const name = `${data.name}L${state.layer}`;
      const packed = await beside.load(name);
      const along = halvesOf(packed[state.sequence]);
      const { pieces } = await beside.load(`${state.sequence}T`);
      const limit = limitOf(Object.values(packed).map(halvesOf), state.colours);
      const strength = strengthOf(state.colours);
      legend.replaceChildren(legendOf(limit, strength, `x of dimension ${data.dim} on resid_post of layer ${state.layer}; one scale for all its text`));
      const others = element("a", { href: `${HOME}${state.sequence}.html#of=${data.name}&layer=${state.layer}`, textContent: `Sequence ${state.sequence.slice(1)} by other dimensions` });
      return [...(HOME === undefined ? [] : [element("p", {}, others)]),
        tokensOf(pieces, 0, pieces.length, { values: along, limit, strength, lines: true, what: "x" })];
    });
    const choose = (key) => (value) => {
      state[key] = value;
      show();
    };
    const largest = data.curves.find((one) => one.site === "resid_post" && one.population === "all");
    const size = (layer) => largest?.max_abs[largest.layer.indexOf(layer)] ?? 0;
    const strongest = data.layers.reduce((best, layer) => (size(layer) > size(best) ? layer : best), data.layers[0]);
    const ordered = [strongest, ...data.layers.filter((layer) => layer !== strongest)];
    const [layers, layer] = chooserOf("layer", "Layer", ordered.map((one) => [String(one), String(one)]), choose("layer"));
    const [sequences, sequence] = chooserOf("sequence", "Sequence", data.sequences.map((one) => [one, one]), choose("sequence"));
    const [ways, colours] = chooserOf("colours", "Colours", COLOURS, choose("colours"));
    Object.assign(state, { layer, sequence, colours });
    show();
    parts.push(sectionOf("In the text", element("div", { className: "bar sticky" }, layers, sequences, ways), legend, box));
  } else {
    parts.push(element("p", { className: "notice", textContent: "Its values along the text were not recorded: gallery.dims says of how many of the selected dimensions they are." }));
  }

  if (data.parts.length) {
    const { sequence, token, text } = data.traced;
    const layers = [...new Set(data.parts.map(([layer]) => layer))];
    const names = [...new Set(data.parts.map(([, part]) => part))].filter((part) => part !== "resid_post");
    const at = new Map(data.parts.map(([layer, part, value]) => [`${layer} ${part}`, value]));
    parts.push(sectionOf("Who writes and removes it",
      ...data.sentences.map((one) => element("p", { textContent: one })),
      element("details", {}, element("summary", { textContent: "Layer by layer" }),
        tableOf(["Layer", ...names, "resid_post"], layers.map((layer) => [String(layer), ...[...names, "resid_post"].map((part) => at.get(`${layer} ${part}`) ?? null)]), "Parts by layer")),
      caption(`x at position ${token} of sequence ${sequence} (${cut(text)}), signed: what was there before each block, what is added, and what is left.`)));
  }
  if (data.writers.length || data.feeders.length) {
    const shown = [];
    if (data.writers.length) {
      shown.push(element("h3", { textContent: "Neurons with a page that write to it" }), tableOf(["Neuron", "Contribution", "Weight"],
        data.writers.map(([name, written, weight]) => [dimLink(name, true), written, weight]), "Neurons with a page"),
      caption("The activation at the dim's extreme token times the weight."));
    }
    if (data.feeders.length) {
      shown.push(element("h3", { textContent: "At the traced token" }), tableOf(["Neuron", "Activation", "Weight", "Contribution", "Share"],
        data.feeders.map(([name, hasPage, ...numbers]) => [dimLink(name, hasPage), ...numbers]), "Neurons at the traced token"),
      caption("Share: of what the block's MLP writes to the dimension there."));
    }
    parts.push(sectionOf("Neurons that feed it", ...shown));
  }
  if (data.gains.length) {
    parts.push(sectionOf("Gains of the norms", tableOf(["Norm", "Layer", "Gain", "Rank of |gain|", "of", "× median"],
      data.gains.map(([module, layer, ...numbers]) => [module, layer === null ? "–" : String(layer), ...numbers]), "Gains"),
    caption("What each norm multiplies the dimension by. × median: |gain| over the median of dims that no rule selects.")));
  }
  if (data.ablations.length) {
    parts.push(sectionOf("Without it", tableOf(["Rule", "Dims set", "At", "To", "Perplexity", "× unchanged"],
      data.ablations.map((row) => [row.rule, row.number, row.positions, row.value, row.perplexity, row.times]), "Ablations"),
    caption("The dimension, alone or with others that the rule selects, set on resid_post in every layer.")));
  }
  return parts;
});
