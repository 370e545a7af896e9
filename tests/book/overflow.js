// What of a page's article lies outside of it, or is cut or scrolls in a box of its own, by more
// than 2 px: a list of "what, by how much: how it begins". On a phone, code may scroll in its box.
(() => {
  const SLACK = 2, phone = innerWidth < 600;
  const article = document.querySelector("article"), box = article.getBoundingClientRect();
  const found = [], told = [];
  const tell = (what, by, element) => {
    told.push(element);
    const text = element.textContent.trim().replace(/\s+/g, " ").replace(/[\ud800-\udfff]/g, "?");
    found.push(`${what}, ${Math.round(by)} px: ${text.slice(0, 60)}`);
  };
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > SLACK) tell("the page", wide, article.querySelector("h1"));
  const inside = ["pre", "mjx-math", "mjx-assistive-mml", "thead", ".headerlink", ".visually-hidden"];
  const looked = inside.map(name => `${name} *`).join(", ") +
    ", thead, mjx-assistive-mml, .headerlink, .visually-hidden";
  for (const element of article.querySelectorAll(`*:not(${looked})`)) {
    const code = element.tagName === "PRE";
    if ((code && phone) || told.some(other => other.contains(element))) continue;
    const rect = element.getBoundingClientRect();
    if (!rect.width || !rect.height) continue;
    const inner = element.scrollWidth - element.clientWidth;
    if (inner > SLACK && element.clientWidth && !element.querySelector("mjx-math") &&
        (code || getComputedStyle(element).overflowX !== "visible"))
      if (!(phone && element.querySelector(":scope > pre")))
        tell(`<${element.tagName.toLowerCase()}> scrolls`, inner, element);
    const room = (element.closest(".math, td, p") ?? article).getBoundingClientRect();
    const place = element.tagName === "MJX-MATH" ? room : box;
    const out = Math.max(rect.right - place.right, place.left - rect.left);
    if (out > SLACK) tell(`<${element.tagName.toLowerCase()}> sticks out`, out, element);
  }
  return found;
})()
