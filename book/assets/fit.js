// Tables and formulas on every width. Columns of numbers stand to the right; "±" and intervals stay
// on one line. Where a table is wider than its place it is set tighter, and if need be each row
// becomes a list of "header: value". A formula that is too wide becomes smaller, down to what one
// can still read.
(() => {
  const SMALLEST = 0.65;  // of a formula's size
  const NUMBER = /^([−+-]?[\d.,]+([eE][−+-]?\d+)?( ?[%×])?( [±(\[].*)?|[—–-]|nan|NaN|)$/;

  // The cells that stand at each place of some rows, spans filled in.
  function grid(rows) {
    const places = rows.map(() => []);
    rows.forEach((row, r) => [...row.cells].forEach(cell => {
      let c = 0;
      while (places[r][c]) c++;
      for (let down = 0; down < cell.rowSpan && r + down < rows.length; down++)
        for (let right = 0; right < cell.colSpan; right++) places[r + down][c + right] = cell;
    }));
    return places;
  }

  function tidy(cell) {
    if (cell.children.length) return;
    const text = cell.textContent.trim();
    cell.textContent = text.replace(/ ± /g, "\u00a0±\u00a0")
      .replace(/\[([^\s[\]]+), ([^\s[\]]+)\]/g, "[$1,\u00a0$2]");
    if (cell.tagName === "TH" && text.includes("_"))
      cell.replaceChildren(...text.split(/(?<=_)/).flatMap((part, k) =>
        k ? [document.createElement("wbr"), part] : [part]));
  }

  function prepare(table) {
    const head = grid([...(table.tHead?.rows ?? [])]);
    const rows = [...table.tBodies].flatMap(body => [...body.rows]);
    const body = grid(rows);
    const title = c => [...new Set(head.map(row => row[c]?.textContent.trim()))]
      .filter(Boolean).join(" ");
    const width = Math.max(0, ...body.map(row => row.length));
    for (let c = 0; c < width; c++) {
      const cells = body.map(row => row[c]).filter(Boolean);
      const numbers = cells.every(cell => NUMBER.test(cell.textContent.trim().replace(/\s+/g, " ")));
      const right = numbers && cells.some(cell => cell.textContent.trim());
      cells.forEach(cell => { cell.dataset.label = title(c); });
      if (right) [...cells, head.at(-1)?.[c]].forEach(cell => cell?.classList.add("number"));
    }
    // A header that spans rows stands above each of them once they are lists.
    body.forEach((row, r) => {
      const above = [...new Set(row)].filter(cell => cell?.tagName === "TH" && cell.parentElement !== rows[r]);
      if (above.length) rows[r].dataset.group = above.map(cell => cell.textContent.trim()).join(" · ");
    });
    table.querySelectorAll("td, th").forEach(tidy);
    // Lists lose a table's roles unless they are said.
    const roles = {TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell"};
    for (const part of [table, ...table.querySelectorAll("thead, tbody, tr, td, th")])
      part.setAttribute("role", roles[part.tagName] ??
        (part.closest("thead") ? "columnheader" : "rowheader"));
    table.querySelectorAll("tbody td").forEach(cell => {
      const inner = document.createElement("div");
      inner.append(...cell.childNodes);
      cell.append(inner);
    });
  }

  // As it is, or set tighter, or as a list: the first that fits.
  function fit() {
    for (const table of document.querySelectorAll("article table")) {
      const place = table.parentElement.getBoundingClientRect().width;
      for (const way of ["", "tight", "stacked"]) {
        table.classList.remove("tight", "stacked");
        if (way) table.classList.add(way);
        if (table.getBoundingClientRect().width <= place + 1) break;
      }
    }
    for (const formula of document.querySelectorAll("article mjx-container")) {
      formula.dataset.size ??= formula.style.fontSize || "100%";
      formula.style.fontSize = formula.dataset.size;
      const place = formula.closest("div, p, li, dd, figcaption").clientWidth;
      const wide = formula.querySelector("mjx-math").getBoundingClientRect().width;
      const scale = Math.max(SMALLEST, Math.min(1, (place - 1) / wide));
      if (scale < 1) formula.style.fontSize = `calc(${scale} * ${formula.dataset.size})`;
    }
  }

  // Paper is light: on it the dark theme would be pale letters on nothing.
  function goesToPaper(goes) {
    const {dataset} = document.documentElement;
    if (goes && dataset.theme === "dark") {
      Object.assign(dataset, {theme: "light", onScreen: "dark"});
    } else if (!goes && dataset.onScreen) {
      dataset.theme = dataset.onScreen;
      delete dataset.onScreen;
    }
  }

  // Not every browser tells of both.
  matchMedia("print").addEventListener("change", medium => goesToPaper(medium.matches));
  addEventListener("beforeprint", () => goesToPaper(true));
  addEventListener("afterprint", () => goesToPaper(false));

  document.addEventListener("DOMContentLoaded", () => {
    const article = document.querySelector("article");
    article.querySelectorAll("table").forEach(prepare);
    // A fold is called what it says, not "Toggle hidden content".
    article.querySelectorAll("details > summary").forEach(say => say.removeAttribute("aria-label"));
    // The article's width changes with the window, the side bars and the printer.
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 1) return;
      width = entry.contentRect.width;
      fit();
    }).observe(article);
  });
  addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(fit));
})();
