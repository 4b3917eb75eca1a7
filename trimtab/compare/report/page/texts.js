// Both sides' texts, from the JSON in the page. Everything of a text goes through textContent: it is never markup.
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const { colourings, prompts, sides: pool, pairs } = JSON.parse(source.textContent);
  const FIRST = 10, MORE = 20;
  const at = (id) => document.getElementById(id);
  const list = at("pairs"), more = at("more"), tip = at("tip");
  let wanted = [], shown = 0;

  const make = (tag, className = "", text = "") => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.textContent = text;
    return node;
  };

  const colouring = () => colourings.find((c) => c.key === at("colour").value);

  const classOf = (side, place) => {
    const c = colouring();
    const value = c && side[c.key] ? side[c.key][place] : null;
    if (value === null || value === undefined) return "";
    const index = c.edges.length ? c.edges.filter((edge) => value >= edge).length : c.names.indexOf(value);
    return index < 0 ? "" : c.classes[index][0];
  };

  const told = (side, place) => colourings
    .filter((c) => side[c.key] && side[c.key][place] !== null)
    .map((c) => {
      const value = side[c.key][place];
      const name = c.edges.length ? `${c.label} ${value.toFixed(2)} ${c.unit}` : c.classes[c.names.indexOf(value)]?.[1] ?? `${c.label} ${value}`;
      return name.trim();
    });

  const fork = () => {
    const sign = make("span", "fork", "≠");
    sign.setAttribute("role", "img");
    sign.ariaLabel = "The texts differ from here.";
    return sign;
  };

  // a text without a trace is one or two spans; one with a trace has a span for each token
  const textNode = (pair, side) => {
    const box = make("div", "text");
    box.dir = "auto";
    const pieces = side.tokens ?? (pair.fork === null ? [side.text] : [side.text.slice(0, pair.fork), side.text.slice(pair.fork)]);
    let start = 0, forked = pair.fork === null;
    pieces.forEach((piece, place) => {
      if (!forked && start + piece.length > pair.fork) { box.append(fork()); forked = true; }
      const span = make("span", forked && pair.fork !== null ? "after" : "", piece);
      if (side.tokens) { span.tabIndex = -1; span.dataset.place = place; }
      box.append(span);
      start += piece.length;
    });
    if (!forked) box.append(fork());
    if (side.tokens) {
      box.side = side;
      box.setAttribute("role", "group");
      box.ariaLabel = `Tokens of ${side.name}`;
      const first = box.querySelector("span[data-place]");
      if (first) first.tabIndex = 0;
      paint(box);
    }
    return box;
  };

  const paint = (box) => {
    box.classList.toggle("coloured", Boolean(box.side[colouring()?.key]));
    for (const span of box.querySelectorAll("span[data-place]")) {
      const after = span.classList.contains("after") ? "after " : "";
      span.className = `token ${after}${classOf(box.side, span.dataset.place)}`;
    }
  };

  const pairNode = (pair) => {
    const article = make("article", "pair");
    const head = make("h3", "", pair.id);
    const rounds = pair.rounds.length > 1 ? `rounds ${pair.rounds.join(", ")}` : `round ${pair.rounds[0]}`;
    head.append(make("small", "", [pair.group, rounds, pair.same ? "same text" : ""].filter(Boolean).join(" · ")));
    const asked = make("details");
    const [prompt, answer] = prompts[pair.id];
    asked.append(make("summary", "", "Prompt"), make("div", "text prompt", prompt));
    if (answer) asked.append(make("p", "note", `Right answer: ${answer}`));
    const sides = make("div", "sides");
    pair.sides.forEach((place, index) => {
      const side = pool[place], column = make("section", "side"), title = make("h4");
      title.append(make("b", "ab"[index], side.name), make("span", "note", side.note));
      column.append(title, textNode(pair, side));
      if (side.stats.length) {
        const details = make("details", "stats"), stats = make("dl");
        for (const [name, value] of side.stats) {
          const entry = make("div");
          entry.append(make("dt", "", name), make("dd", "", value));
          stats.append(entry);
        }
        details.append(make("summary", "", "What the method did"), stats);
        column.append(details);
      }
      sides.append(column);
    });
    article.append(head, asked, sides);
    return article;
  };

  const show = (count) => {
    const next = wanted.slice(shown, shown + count);
    list.append(...next.map(pairNode));
    shown += next.length;
    const left = wanted.length - shown;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(MORE, left)} more`;
    at("shown").textContent = `${shown} of ${wanted.length} shown`;
    return list.children[shown - next.length];
  };

  const restart = () => {
    const group = at("group")?.value ?? "", other = at("with")?.value, all = at("which").value === "all";
    wanted = pairs.filter((pair) =>
      (all || !pair.same) && (!group || pair.group === group) && (other === undefined || pair.with === other));
    shown = 0;
    list.replaceChildren();
    show(FIRST);
  };

  const recolour = () => {
    at("key").replaceChildren(...(colouring()?.classes ?? []).map(([className, label]) => {
      const entry = make("li");
      entry.append(make("span", `swatch ${className}`), label);
      return entry;
    }));
    list.querySelectorAll(".text").forEach((box) => { if (box.side) paint(box); });
  };

  // -- what is known of one token ------------------------------------------------------------------------------------

  const tokenOf = (event) => event.target.closest?.(".token");

  const tell = (token) => {
    const side = token.parentNode.side, place = Number(token.dataset.place);
    tip.replaceChildren(make("code", "", JSON.stringify(side.tokens[place])), ...told(side, place).map((line) => make("div", "", line)));
    tip.hidden = false;
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(left, 8) + scrollX}px`;
    tip.style.top = `${(above > 0 ? above : box.bottom + 6) + scrollY}px`;
    token.setAttribute("aria-describedby", "tip");
  };

  const hush = () => {
    tip.hidden = true;
    list.querySelector("[aria-describedby]")?.removeAttribute("aria-describedby");
  };

  const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };

  list.addEventListener("pointerover", (event) => { const token = tokenOf(event); hush(); if (token) tell(token); });
  list.addEventListener("pointerleave", hush);
  list.addEventListener("focusin", (event) => { const token = tokenOf(event); hush(); if (token) tell(token); });
  list.addEventListener("focusout", hush);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });
  list.addEventListener("keydown", (event) => {
    const token = tokenOf(event);
    if (!token || !(event.key in STEPS)) return;
    event.preventDefault();
    const tokens = [...token.parentNode.querySelectorAll(".token")];
    const next = tokens[Math.max(0, Math.min(tokens.length - 1, tokens.indexOf(token) + STEPS[event.key]))];
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  at("colour").replaceChildren(
    ...[...colourings.map((c) => [c.key, c.label]), ["", "nothing"]].map(([value, label]) => new Option(label, value)));
  at("colour").addEventListener("change", recolour);
  at("which").addEventListener("change", restart);
  at("group")?.addEventListener("change", restart);
  at("with")?.addEventListener("change", restart);
  more.addEventListener("click", () => show(MORE)?.querySelector("summary").focus());
  at("controls").hidden = false;
  for (const id of ["colouring", "key", "keys"]) at(id).hidden = colourings.length === 0;
  if (pairs.every((pair) => pair.same)) at("which").value = "all";
  restart();
  recolour();
})();
