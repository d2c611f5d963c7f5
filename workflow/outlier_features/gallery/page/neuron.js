// The page of a neuron.
filling(document.getElementById("content"), async () => {
  const data = await beside.load(document.body.dataset.name);
  const populations = Object.keys(data.statistics);
  const state = { population: null, side: null, colours: null };

  const values = data.values && halvesOf(data.values);
  const segments = [];
  let start = 0;
  for (const [sequence, first, end] of data.segments) {
    segments.push({ sequence, first, end, start });
    start += end - first;
  }
  const valuesOf = (sequence, first, end) => {
    const found = segments.find((one) => one.sequence === sequence && one.first <= first && end <= one.end);
    return found && values.subarray(found.start + first - found.first, found.start + end - found.first);
  };

  // One scale for all text of the neuron, or on request one of the population: without massive tokens little is left.
  const fullAt = ({ colours, population }) => {
    const { min, max } = data.statistics[population];
    return colours === "population" ? Math.max(Math.abs(min ?? 0), Math.abs(max ?? 0)) : data.limit;
  };

  const example = (place, rank) => {
    const [sequence, position, value] = ["sequence", "token", "value"].map((name) => data.places[name][place]);
    const length = data.lengths[`S${sequence}`];
    const first = Math.max(0, position - 50);
    const end = Math.min(length, position + 11);
    const text = element("div", { className: "place" });
    const whole = element("button", { type: "button", textContent: "Whole text" });
    whole.setAttribute("aria-pressed", false);
    const head = element("p", { className: "where-is" }, ...(rank ? [element("b", { textContent: `${rank}.` })] : []),
      element("span", { className: "value", textContent: numberText(value) }),
      element("span", { className: "soft", textContent: `sequence ${sequence}, position ${position} of ${length}` }), whole);
    const options = { limit: fullAt(state), strength: strengthOf(state.colours), marked: position, what: "activation" };
    const around = () => filling(text, async () => {
      const { pieces } = await beside.load(`S${sequence}T`);
      const along = values && valuesOf(sequence, first, end);
      return tokensOf(pieces, first, end, { ...options, values: along });
    });
    const all = () => filling(text, async () => {
      const { pieces } = await beside.load(`S${sequence}T`);
      const along = !values ? null : data.has_more ? halvesOf((await beside.load(`${data.name}W`))[`S${sequence}`]) : valuesOf(sequence, 0, length);
      return tokensOf(pieces, 0, pieces.length, { ...options, values: along, lines: true });
    });
    whole.addEventListener("click", () => {
      const open = whole.getAttribute("aria-pressed") !== "true";
      whole.setAttribute("aria-pressed", open);
      (open ? all : around)();
    });
    around();
    return element("li", {}, head, text);
  };

  const examples = element("ol", { className: "examples" });
  const typical = element("div");
  const legends = [element("div"), element("div")];
  const histogram = element("div");
  const statistics = element("div");
  const numbers = ["tokens", "active_share", "mean", "std", "kurtosis", "min", "max"];
  const heads = ["Positions", "Active", "Mean", "Std", "Kurtosis", "Min", "Max"];

  const showExamples = () => {
    const listed = data.lists[state.population][state.side];
    examples.replaceChildren(...listed.map((place, index) => example(place, index + 1)));
    if (!listed.length) examples.replaceChildren(element("li", { className: "soft", textContent: "There are none in this population." }));
  };
  const showTypical = () => typical.replaceChildren(...data.intervals.map(({ low, high, tokens, places }) => element("details", {},
    element("summary", { textContent: `${numberText(low)} to ${numberText(high)}: ${tokens.toLocaleString("en")} ${tokens === 1 ? "position" : "positions"}` }))));
  const openTypical = () => [...typical.children].forEach((details, index) => details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("ol")) return;
    const { places } = data.intervals[index];
    details.append(places.length ? element("ol", { className: "examples" }, ...places.map((place) => example(place))) : element("p", { className: "soft", textContent: "None." }));
  }));
  const showAll = () => {
    for (const box of legends) box.replaceChildren(values ? legendOf(fullAt(state), strengthOf(state.colours), state.colours === "population" ? `activation; full at the largest (${data.populations[state.population]})` : "activation; one scale for all text of this neuron") : "");
    showExamples();
    showTypical();
    openTypical();
    const drawnOf = data.histograms[state.population];
    histogram.replaceChildren(...(drawnOf ? [histogramOf(drawnOf),
      caption(`Deciles, approximate, since the bins alone are kept (each is off by less than ${numberText(drawnOf.width)}): ${drawnOf.deciles.map((one) => numberText(one)).join(", ")}.`)] : [caption("There are no positions.")]));
  };
  statistics.append(tableOf(["Population", ...heads],
    populations.map((name) => [data.populations[name], ...numbers.map((number) => data.statistics[name][number])]), "Statistics"));

  const choose = (name) => (value) => {
    state[name] = value;
    showAll();
  };
  const [population, chosen] = chooserOf("population", "Population", populations.map((name) => [name, data.populations[name]]), choose("population"));
  const [side, ofSide] = chooserOf("side", "Side", [["max", "largest"], ["min", "smallest"]], choose("side"));
  const [colours, ofColours] = chooserOf("colours", "Colours", [["linear", "by value"], ["root", "by its square root"], ["population", "by value, full at the population's largest"]], choose("colours"));
  Object.assign(state, { population: chosen, side: ofSide, colours: ofColours });
  showAll();

  const tokens = (rows, label) => tableOf(["Token", "Logit"], rows.map(([text, logit]) => [element("code", { className: "token-name", textContent: text }), logit]), label);
  return [
    wayOf(data.around, { random: true }),
    ...(data.has_page ? [element("p", { className: "reasons" }, "Why it has a page: ", data.reasons.join(", "))]
      : [element("p", { className: "notice", textContent: "This page was made on request. Activations along the text, typical examples, logit effects and near neurons are recorded of neurons in the gallery alone: gallery.neurons: all records them of every neuron, gallery.kurtosis of more." })]),
    ...(data.has_page && !values ? [element("p", { className: "notice", textContent: "No activations along the text were recorded of this neuron." })] : []),
    sectionOf("Statistics", statistics, caption("The activation (mlp_act) over the positions of each population. Active: the share above 0.")),
    sectionOf("Examples", element("div", { className: "bar sticky" }, population, side, ...(values ? [colours] : [])), legends[0], examples,
      caption("One for each sequence, its largest or smallest activation first; 50 tokens before it and 10 after. The arrow keys go through a text that has the focus.")),
    ...(data.published ? [sectionOf("What was published", tableOf(["Rank", "Published", "Sequence", "Position", "Here", "Sequence", "Position"], data.published.rows, "Published examples"),
      caption(`The largest activations by ${data.published.source}, beside this run's over all tokens. There, padding and the first token were counted; here padding never is. A sequence is the same text where the run has one document a sequence, in the corpus's order.`))] : []),
    ...(data.intervals.length ? [sectionOf("Typical examples", caption("Ten equal parts of the range from the smallest to the largest activation, over all positions; up to five examples of each, chosen by a hash."), legends[1], typical)] : []),
    sectionOf("Histogram", histogram),
    ...(data.writes.length ? [sectionOf("Dimensions that it writes", tableOf(["Dim", "Contribution", "Weight"],
      data.writes.map(([dim, written, weight, hasPage]) => [dimLink(`D${dim}`, hasPage), written, weight]), "Dimensions"),
    caption("Of the dims that rules selected. Contribution: the activation at the dim's extreme token times the weight."))] : []),
    ...(data.top.length ? [sectionOf("Effect on the logits", element("div", { className: "both" }, element("div", {}, element("h3", { textContent: "Raises most" }), tokens(data.top, "Raised tokens")), element("div", {}, element("h3", { textContent: "Lowers most" }), tokens(data.bottom, "Lowered tokens"))),
      caption("Per unit of activation: what it writes, through the final norm's gain and the unembedding, without the norm's division."))] : []),
    ...(data.nearest.length ? [sectionOf("Nearest neurons", tableOf(["Neuron", "Cosine"], data.nearest.map(([name, cosine]) => [dimLink(name, true), cosine]), "Nearest neurons"),
      caption("Of the neurons that have pages, those with the largest cosine of activations over the run's positions."))] : []),
  ];
});
