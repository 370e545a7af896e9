// The tiny network of the book, live: four views of its 16 masks that need neither kernel nor
// network. The page hands over log p(y|x,z) of some examples; all else is computed here.
//
// A view is a function of the box to fill and the data; it builds its controls once and draws anew
// on each change. Every number that it shows stands in an element with data-name and data-value,
// unrounded, which is where the tests read it.
(() => {
  // ---- Mathematics. Mask k spells k in binary: two bits of layer 1, two of layer 2. ------------
  const MASKS = [...Array(16).keys()];
  const bit = (mask, unit) => mask >> (3 - unit) & 1;
  const total = values => values.reduce((a, b) => a + b, 0);
  const logistic = value => 1 / (1 + Math.exp(-value));
  const mean = (weights, values) => total(weights.map((w, k) => w * values[k]));
  const kl = (p, q) => mean(p, p.map((v, k) => Math.log(v) - Math.log(q[k])));
  const entropy = p => -mean(p, p.map(Math.log));

  // Bayes' rule over all masks: log R, the evidence and the posterior.
  function bayes(logLik, keep) {
    const prior = MASKS.map(k => total([0, 1, 2, 3].map(
      unit => Math.log(bit(k, unit) ? keep : 1 - keep))));
    const logR = logLik.map((value, k) => value + prior[k]);
    const evidence = total(logR.map(Math.exp));
    return {logR, evidence, logEvidence: Math.log(evidence),
      prior: prior.map(Math.exp), posterior: logR.map(value => Math.exp(value) / evidence)};
  }

  // Independent bits: probabilities of the 2^n masks, the first bit being the highest.
  const independent = keeps => keeps.reduce(
    (made, keep) => made.flatMap(p => [p * (1 - keep), p * keep]), [1]);

  // The keep-probability of one bit that maximises E_q[score − log q], the others held.
  function climbed(score, keeps, unit) {
    const ends = [0, 1].map(end => {
      const others = keeps.map((keep, j) => j === unit ? end : keep);
      return mean(independent(others), score);
    });
    return logistic(ends[1] - ends[0]);
  }

  // Coordinate ascent to the end, for a policy whose bits are independent.
  function best(score, bits) {
    const keeps = Array(bits).fill(0.5);
    for (let step = 0; step < 400; step++)
      keeps[step % bits] = climbed(score, keeps, step % bits);
    return keeps;
  }

  // The layer-wise q nearest to the posterior: bits of a layer independent given earlier layers.
  function layerwise(logR) {
    const second = [0, 1, 2, 3].map(z1 => best(logR.slice(4 * z1, 4 * z1 + 4), 2));
    const value = second.map((keeps, z1) => {
      const q = independent(keeps);
      return mean(q, logR.slice(4 * z1, 4 * z1 + 4)) + entropy(q);
    });
    return [best(value, 2), second];
  }

  // The training policy: logits divided by T, and a share of random masks, in each layer.
  function tempered([first, second], temperature, share) {
    const layer = keeps => independent(keeps.map(
      keep => logistic(Math.log(keep / (1 - keep)) / temperature)))
      .map(p => (1 - share) * p + share / 4);
    return layer(first).flatMap((p, z1) => layer(second[z1]).map(value => p * value));
  }

  // The keep-probability of a unit among some masks (all of them, or those below a state).
  const below = state => MASKS.filter(k => state === null || k >> 2 === state);
  function keepOf(q, state, unit) {
    const some = below(state);
    return total(some.map(k => q[k] * bit(k, unit))) / total(some.map(k => q[k]));
  }

  // The same policy with that keep-probability set anew, and all else as it was (Jeffrey's rule).
  function setKeep(q, state, unit, keep) {
    const old = keepOf(q, state, unit), some = below(state);
    return q.map((p, k) => !some.includes(k) ? p :
      p * (bit(k, unit) ? keep / old : (1 - keep) / (1 - old)));
  }

  // ---- Parts that the views share. -------------------------------------------------------------
  const SVG = "http://www.w3.org/2000/svg";
  const PAIRS = ["00", "01", "10", "11"];
  const called = mask => `${PAIRS[mask >> 2]}·${PAIRS[mask & 3]}`;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const digits = (value, count = 3) => // no "−0.000"
    (Math.abs(value) < 0.5 * 10 ** -count ? 0 : value).toFixed(count).replace("-", "−");

  function fresh() { // a name that no other view on the page has
    window.gfoLive = (window.gfoLive ?? 0) + 1;
    return `gfo-live-${window.gfoLive}`;
  }

  function make(name, about = {}, ...children) {
    const one = document.createElement(name);
    for (const [key, value] of Object.entries(about)) one.setAttribute(key, value);
    one.append(...children);
    return one;
  }

  function draw(name, about = {}, ...children) {
    const one = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(about)) one.setAttribute(key, value);
    one.append(...children);
    return one;
  }

  // Puts a number where it is read by eye and by machine.
  function put(element, name, value, text) {
    element.dataset.name = name;
    element.dataset.value = value;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const say = (name, value, count) => put(make("b"), name, value, digits(value, count));

  // A line that is read aloud when it changes.
  function status() {
    const line = make("p", {role: "status"});
    return {line, tell: (...parts) => line.replaceChildren(...parts)};
  }

  function choice(label, options, changed) {
    const id = fresh(), select = make("select", {id});
    select.append(...options.map((text, k) => make("option", {value: k}, text)));
    select.addEventListener("change", () => changed(+select.value));
    return make("div", {class: "live-choice"}, make("label", {for: id}, label), select);
  }

  function slider(label, name, [min, max, step], changed, count = 2) {
    const id = fresh(), shown = make("span", {"aria-hidden": "true"});
    const input = make("input", {type: "range", id, min, max, step});
    input.addEventListener("input", () => changed(input.valueAsNumber));
    const row = make("div", {class: "live-slider"}, make("label", {for: id}, label), input, shown);
    return {row, input, set(value) {
      input.value = value;
      put(shown, name, value, digits(value, count));
      input.setAttribute("aria-valuetext", digits(value, count));
    }};
  }

  function buttons(...named) {
    const row = make("div", {class: "live-buttons"});
    for (const [text, act] of named) {
      const button = make("button", {type: "button"}, text);
      button.addEventListener("click", act);
      row.append(button);
    }
    return row;
  }

  // A 4 × 4 heat map, masks of layer 1 × masks of layer 2, in per cent. With `picked` its cells are
  // radio buttons, so that arrow keys walk over the masks.
  function heat(title, name, picked) {
    const grid = make("div", {class: "live-grid"}), group = fresh();
    const head = text => make("span", {class: "live-head"}, text);
    const cells = MASKS.map(() => make("span", {class: "live-cell"})), radios = [];
    grid.append(head("z₁ ╲ z₂"), ...PAIRS.map(pair => head(pair)));
    for (const k of MASKS) {
      if (k % 4 === 0) grid.append(head(PAIRS[k >> 2]));
      if (!picked) {
        grid.append(cells[k]);
        continue;
      }
      const radio = make("input", {type: "radio", name: group, value: k, class: "visually-hidden"});
      radio.addEventListener("change", () => picked(k));
      radios.push(radio);
      const hidden = make("span", {class: "visually-hidden"}, `mask ${called(k)}, per cent: `);
      grid.append(make("label", {}, radio, hidden, cells[k]));
    }
    const map = picked ? make("fieldset", {class: "live-map"}, make("legend", {}, title), grid)
      : make("div", {class: "live-map"}, make("div", {class: "live-title"}, title), grid);
    if (!picked) grid.setAttribute("role", "img");
    function fill(p, darkest) {
      cells.forEach((cell, k) => {
        put(cell, name, p[k], digits(100 * p[k], 1));
        cell.style.setProperty("--share", p[k] / darkest);
      });
      const top = p.indexOf(Math.max(...p)), least = p.indexOf(Math.min(...p));
      if (!picked) grid.setAttribute("aria-label", `Heat map, ${title}: most at mask ` +
        `${called(top)}, ${digits(100 * p[top], 1)} per cent; least at ${called(least)}, ` +
        `${digits(100 * p[least], 1)} per cent`);
    }
    return {map, radios, fill};
  }

  // The network with a mask: what is off is pale.
  function network(classes) {
    const columns = [[22, 4], [88, 2], [154, 2], [220, classes.length]];
    const places = columns.map(([x, count]) =>
      [...Array(count).keys()].map(i => [x, 84 + 38 * (i - (count - 1) / 2)]));
    const picture = draw("svg", {viewBox: "0 0 310 172", role: "img", class: "live-network"});
    const edges = [], nodes = [];
    places.slice(1).forEach((column, l) => column.forEach((to, j) => places[l].forEach((from, i) => {
      edges.push([l, i, j, draw("line", {x1: from[0], y1: from[1], x2: to[0], y2: to[1]})]);
    })));
    places.forEach((column, l) => column.forEach(([cx, cy], i) => {
      nodes.push([l, i, draw("circle", {cx, cy, r: 9})]);
    }));
    const texts = classes.map((text, i) =>
      draw("text", {x: 235, y: places[3][i][1] + 4}, text));
    const heads = [["x", 22], ["layer 1", 88], ["layer 2", 154], ["class", 220]];
    picture.append(...edges.map(edge => edge[3]), ...nodes.map(node => node[2]), ...texts,
      ...heads.map(([text, x]) => draw("text", {x, y: 168, "text-anchor": "middle"}, text)));
    function update(mask, label) {
      const on = (l, i) => l === 0 || l === 3 || bit(mask, 2 * (l - 1) + i) === 1;
      for (const [l, i, j, line] of edges)
        line.setAttribute("class", on(l, i) && on(l + 1, j) ? "live-on" : "live-off");
      for (const [l, i, circle] of nodes)
        circle.setAttribute("class", on(l, i) ? "live-on" : "live-off");
      texts.forEach((text, i) => text.setAttribute("class", i === label ? "live-label" : ""));
      const off = ["layer 1, unit 1", "layer 1, unit 2", "layer 2, unit 1", "layer 2, unit 2"]
        .filter((_, unit) => !bit(mask, unit));
      picture.setAttribute("aria-label", `Network under mask ${called(mask)}. Off: ` +
        `${off.join("; ") || "no unit"}.`);
    }
    return {picture, update};
  }

  // A share of 1 as a bar.
  function bar(label) {
    const full = make("span", {class: "live-full"});
    return {node: make("div", {class: "live-bar"}, make("span", {}, label),
      make("span", {class: "live-track"}, full)),
      set: value => { full.style.width = `${100 * value}%`; }};
  }

  // ---- The views. ------------------------------------------------------------------------------
  const VIEWS = {
    // Prior and posterior of the masks of one example, and what one mask leaves of the network.
    posterior(box, data) {
      let example = 0, now, mask;
      const prior = heat("Prior, %", "prior");
      const posterior = heat("Posterior, %: choose a mask", "posterior", k => {
        mask = k;
        shown();
      });
      const net = network(data.classes), sure = bar("p(y|x,z)"), {line, tell} = status();
      function shown() {
        now = bayes(data.log_lik[example], data.keep);
        mask ??= now.posterior.indexOf(Math.max(...now.posterior));
        const darkest = Math.max(...now.posterior, ...now.prior);
        prior.fill(now.prior, darkest);
        posterior.fill(now.posterior, darkest);
        posterior.radios[mask].checked = true;
        const lik = Math.exp(data.log_lik[example][mask]);
        net.update(mask, data.labels[example]);
        sure.set(lik);
        tell(`Under mask ${called(mask)} the network gives the right class probability `,
          say("likelihood", lik), ", on average over the prior ", say("evidence", now.evidence),
          ", the evidence. So Bayes' rule multiplies the prior of this mask by ",
          say("ratio", lik / now.evidence, 2), ".");
      }
      box.append(choice("Example", data.names, k => { example = k; shown(); }),
        make("div", {class: "live-row"}, prior.map, posterior.map),
        make("div", {class: "live-row"}, make("div", {class: "live-map"}, net.picture, sure.node),
          line));
      shown();
    },

    // A factorised q by hand: ELBO and KL share the log evidence between them.
    bound(box, data) {
      const prior = () => Array(4).fill(data.keep);
      let example = 0, now, floor, keeps = prior(), climbing;
      const maps = [heat("Factorised q, %", "q"), heat("Posterior, %", "posterior")];
      const {line, tell} = status();
      const names = ["Layer 1, unit 1", "Layer 1, unit 2", "Layer 2, unit 1", "Layer 2, unit 2"];
      const sliders = names.map((name, unit) => slider(`${name}: keep`, "keep", [0.05, 0.95, 0.01], keep => {
        clearTimeout(climbing);
        keeps[unit] = keep;
        shown();
      }));
      const parts = ["elbo", "kl"].map(name => make("span", {class: `live-${name}`}));
      const ticks = make("div", {class: "live-ticks", "aria-hidden": "true"});
      const key = make("p", {class: "live-key"});
      const stack = make("div", {class: "live-stack", "aria-hidden": "true"}, ...parts);
      const bound = q => mean(q, now.logR) + entropy(q);
      function chosen(k) { // the axis begins below the worst q that the sliders can make
        clearTimeout(climbing);
        example = k;
        now = bayes(data.log_lik[example], data.keep);
        const corners = MASKS.map(mask =>
          bound(independent([0, 1, 2, 3].map(unit => bit(mask, unit) ? 0.95 : 0.05))));
        floor = Math.floor(Math.min(...corners));
        const count = -floor;
        ticks.replaceChildren(...[...Array(count + 1).keys()].map(tick => {
          const at = make("span", {}, digits(floor + tick, 0));
          at.style.left = `${100 * tick / count}%`;
          return at;
        }));
        shown();
      }
      function shown() {
        const q = independent(keeps), elbo = bound(q), gap = kl(q, now.posterior);
        const darkest = Math.max(...q, ...now.posterior);
        maps[0].fill(q, darkest);
        maps[1].fill(now.posterior, darkest);
        sliders.forEach((one, unit) => one.set(keeps[unit]));
        [elbo - floor, gap].forEach((wide, k) => { parts[k].style.width = `${-100 * wide / floor}%`; });
        key.replaceChildren(make("i", {class: "live-elbo"}), " ELBO up to its end, ",
          make("i", {class: "live-kl"}), " KL(q‖posterior) behind it; together they end at ",
          "log p(y|x), whatever q (axis in nats)");
        tell("ELBO ", say("elbo", elbo), " + KL ", say("kl", gap), " = log evidence ",
          say("log_evidence", elbo + gap), " nats.");
      }
      function climb(step = 0, still = 0) { // one unit at a time, until a round changes nothing
        const unit = step % 4, keep = climbed(now.logR, keeps, unit);
        still = Math.abs(keep - keeps[unit]) < 1e-9 ? still + 1 : 0;
        keeps[unit] = keep;
        if (still === 4 || step > 400) return shown();
        if (calm.matches || step > 24) return climb(step + 1, still); // the rest cannot be seen
        shown();
        climbing = setTimeout(climb, 180, step + 1, still);
      }
      box.append(choice("Example", data.names, chosen), ...sliders.map(one => one.row),
        buttons(["Climb to the best factorised q", () => { clearTimeout(climbing); climb(); }],
          ["Back to the prior", () => { clearTimeout(climbing); keeps = prior(); shown(); }]),
        make("div", {class: "live-row"}, maps[0].map, maps[1].map), stack, ticks, key, line);
      chosen(0);
    },

    // The flow tree with the residual of each mask beside its leaf.
    flow(box, data) {
      let example = 0, now, q, logZ, state = null, unit = 1;
      const {line, tell} = status(), y = leaf => 44 + 22 * leaf, middle = i => y(4 * i + 1.5);
      const options = [[null, 0], [null, 1]].concat(
        [0, 1, 2, 3].flatMap(z1 => [[z1, 2], [z1, 3]]));
      const titles = options.map(([z1, j]) => z1 === null ? `layer 1, unit ${j + 1}`
        : `layer 2, unit ${j - 1}, after ${PAIRS[z1]} in layer 1`);
      const which = choice("Keep-probability of", titles, k => {
        [state, unit] = options[k];
        shown();
      });
      const keep = slider("is", "keep", [0.05, 0.95, 0.01], value => {
        q = setKeep(q, state, unit, value);
        shown();
      });
      const height = slider("log Z", "slid", [-1, 1, 0.05], value => { logZ = value; shown(); });
      const picture = draw("svg", {viewBox: "0 0 380 398", role: "img", class: "live-tree"});
      function reset(wrong) {
        const order = [...MASKS].sort((a, b) => now.posterior[a] - now.posterior[b]);
        const [least, top] = [order[0], order[15]], swap = {[least]: top, [top]: least};
        logZ = now.logEvidence + (wrong === "log Z" ? 0.5 : 0);
        q = MASKS.map(k => now.posterior[wrong === "masks" ? swap[k] ?? k : k]);
        shown();
      }
      function chosen(k) { // log Z slides from one nat below the log evidence to one above
        example = k;
        now = bayes(data.log_lik[example], data.keep);
        height.input.min = now.logEvidence - 1;
        height.input.max = now.logEvidence + 1;
        reset();
      }
      function tree(residuals, flows) {
        const inflow = [0, 1, 2, 3].map(i => total(flows.slice(4 * i, 4 * i + 4)));
        const wide = flow => Math.max(0.5, 24 * flow / now.evidence);
        const most = Math.max(...residuals.map(Math.abs)), end = [1, 2, 4].find(e => most <= e) ?? 4;
        const at = r => 318 + 52 * Math.max(-1, Math.min(1, r / end));
        const edge = (x1, y1, x2, y2, flow, name) => draw("line",
          {x1, y1, x2, y2, "stroke-width": wide(flow), class: name});
        const text = (x, y, words, anchor = "middle") =>
          draw("text", {x, y, "text-anchor": anchor}, words);
        const parts = [text(46, 14, "layer 1"), text(140, 14, "layer 2"), text(218, 14, "mask, flow"),
          text(318, 14, "residual (nats)"), text(266, 28, digits(-end, 0)), text(318, 28, "0"),
          text(370, 28, digits(end, 0)),
          draw("line", {x1: 318, y1: 32, x2: 318, y2: 384, class: "live-axis"})];
        inflow.forEach((flow, i) => parts.push(edge(20, y(7.5), 94, middle(i), flow, "live-first")));
        MASKS.forEach(k => parts.push(edge(94, middle(k >> 2), 184, y(k), flows[k], "live-second")));
        const node = (x, y, flow, title, name) => parts.push(
          draw("rect", {x: x - 18, y: y - 16, width: 36, height: 32, rx: 5, class: name}),
          text(x, y - 3, title), put(text(x, y + 11, digits(flow, 2)), "inflow", flow));
        node(20, y(7.5), Math.exp(logZ), "s₀", "live-node");
        inflow.forEach((flow, i) =>
          node(94, middle(i), flow, PAIRS[i], i === state ? "live-node live-here" : "live-node"));
        MASKS.forEach(k => parts.push(
          text(188, y(k) + 4, `${called(k)} ${digits(flows[k], 3)}`, "start"),
          draw("line", {x1: 318, y1: y(k), x2: at(residuals[k]), y2: y(k), class: "live-stem"}),
          put(draw("circle", {cx: at(residuals[k]), cy: y(k), r: 4}), "residual", residuals[k])));
        picture.replaceChildren(...parts);
        picture.setAttribute("aria-label", "Tree of flows from the root through the four masks of " +
          "layer 1 to all sixteen masks, and the residual of each. The line below says the numbers.");
      }
      function shown() {
        const residuals = q.map((p, k) => logZ + Math.log(p) - now.logR[k]);
        tree(residuals, q.map(p => Math.exp(logZ) * p));
        height.set(logZ);
        keep.set(keepOf(q, state, unit));
        const off = residuals.filter(r => Math.abs(r) > 0.0005).length, gap = kl(q, now.posterior);
        tell("log Z ", say("log_z", logZ), ", log evidence ", say("log_evidence", now.logEvidence),
          ` nats. Residuals that are not zero: ${off} of 16, from `,
          say("least", Math.min(...residuals), 2), " to ", say("most", Math.max(...residuals), 2),
          " nats. KL(q‖posterior) ", say("kl", gap), ", ELBO ", say("elbo", now.logEvidence - gap),
          " nats.");
      }
      which.querySelector("select").selectedIndex = 1;
      box.append(choice("Example", data.names, chosen), height.row, which, keep.row,
        buttons(["Exact", () => reset()], ["log Z wrong by 0.5", () => reset("log Z")],
          ["Two masks swapped", () => reset("masks")]), picture, line);
      chosen(0);
    },

    // Which masks the training policy visits, beside the q that it is made from.
    policy(box, data) {
      let example = 0, now, tables, temperature = 1, share = 0;
      const maps = [heat("Layer-wise q, %", "q"), heat("Training policy q̃, %", "tempered")];
      const {line, tell} = status();
      const heater = slider("Temperature T", "temperature", [1, 8, 0.1],
        value => { temperature = value; shown(); }, 1);
      const coins = slider("Share ε of random masks", "share", [0, 1, 0.05],
        value => { share = value; shown(); });
      const set = (t, e) => { [temperature, share] = [t, e]; shown(); };
      function chosen(k) {
        example = k;
        now = bayes(data.log_lik[example], data.keep);
        tables = layerwise(now.logR);
        shown();
      }
      function shown() {
        const q = tempered(tables, 1, 0), visited = tempered(tables, temperature, share);
        const rare = q.indexOf(Math.min(...q)), darkest = Math.max(...q, ...visited);
        maps[0].fill(q, darkest);
        maps[1].fill(visited, darkest);
        heater.set(temperature);
        coins.set(share);
        tell("Entropy of q ", say("entropy", entropy(q)), ", of the training policy ",
          say("entropy_tempered", entropy(visited)), `, of fair coins ${digits(Math.log(16))} nats. `,
          `The mask that q draws least, ${called(rare)}, comes once in `, say("rare", 1 / q[rare], 0),
          " draws of q and once in ", say("rare_tempered", 1 / visited[rare], 0),
          " of the training policy. KL(q‖posterior) ", say("kl", kl(q, now.posterior)), " nats.");
      }
      box.append(choice("Example", data.names, chosen), heater.row, coins.row,
        buttons(["Masks from q itself", () => set(1, 0)], ["As in the paper", () => set(2, 0.1)]),
        make("div", {class: "live-row"}, maps[0].map, maps[1].map), line);
      chosen(0);
    },
  };

  // ---- Start whatever is on the page and not yet live. ------------------------------------------
  function start(tries) {
    const roots = [...document.querySelectorAll(".gfo-live:not([data-ready])")];
    // A notebook may attach its output after it runs the script.
    if (!roots.length) return tries && setTimeout(start, 100, tries - 1);
    for (const root of roots) {
      root.dataset.ready = "";
      const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
      const box = root.querySelector(".live-box");
      VIEWS[root.dataset.view](box, data);
      box.hidden = false;
      root.querySelector(".live-static").hidden = true;
    }
  }

  start(50);
})();
