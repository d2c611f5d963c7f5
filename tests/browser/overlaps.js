// Texts of the shown page that cover each other, or that a figure's edge cuts off: a list of sentences.
() => {
  const found = [];
  const texts = [];
  const clipped = (rect, element) => {
    let { left, top, right, bottom } = rect;
    for (let box = element; box && box !== document.body; box = box.parentElement) {
      const style = getComputedStyle(box);
      if (style.display === "none" || style.visibility === "hidden") return null;
      if (style.overflowX === "visible" && style.overflowY === "visible") continue;
      const edge = box.getBoundingClientRect();
      [left, top] = [Math.max(left, edge.left), Math.max(top, edge.top)];
      [right, bottom] = [Math.min(right, edge.right), Math.min(bottom, edge.bottom)];
    }
    return right - left > 1 && bottom - top > 1 ? { left, top, right, bottom } : null;
  };
  const add = (rect, element, text) => {
    const seen = rect.width && clipped(rect, element);
    if (seen) texts.push({ ...seen, element, text: text.trim().slice(0, 40) });
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, noscript, svg, [hidden], .skip")) continue;
    if (!element.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) add(rect, element, node.data);
  }
  for (const text of document.querySelectorAll(".plot svg text")) {
    const rect = text.getBoundingClientRect();
    if (!text.textContent.trim() || !text.checkVisibility() || Number(getComputedStyle(text).opacity) === 0) continue;
    // What only stands for a mark's hover text, or is hidden by its layer.
    if (text.closest(".hoverlayer, .modebar, .updatemenu-dropdown-button-group")) continue;
    add(rect, text, text.textContent);
    const edge = text.closest(".plot").getBoundingClientRect();
    if (rect.left < edge.left - 1 || rect.right > edge.right + 1 || rect.top < edge.top - 1 || rect.bottom > edge.bottom + 1) {
      found.push(`"${text.textContent}" is cut off in ${text.closest("figure").id}`);
    }
  }
  texts.sort((one, other) => one.top - other.top);
  texts.forEach((one, place) => {
    for (let next = place + 1; next < texts.length && texts[next].top < one.bottom - 3; next++) {
      const other = texts[next];
      const across = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (across > 2 && down > 3 && one.element !== other.element) {
        found.push(`"${one.text}" and "${other.text}" overlap in ${one.element.closest("[id]").id} by ${Math.round(across)} × ${Math.round(down)} pixels`);
      }
    }
  });
  return found;
}
