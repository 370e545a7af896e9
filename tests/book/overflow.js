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
  for (const element of article.querySelectorAll("*")) {
    if (element.closest("mjx-assistive-mml, thead, .visually-hidden, .headerlink")) continue;
    if (element.closest("mjx-container") && element.tagName !== "MJX-MATH") continue; // glyphs
    if ((phone && element.closest("pre")) || told.some(other => other.contains(element))) continue;
    const rect = element.getBoundingClientRect();
    if (!rect.width || !rect.height) continue;
    const boxed = getComputedStyle(element).overflowX !== "visible";
    const inner = element.scrollWidth - element.clientWidth;
    if (boxed && element.clientWidth && inner > SLACK && !element.querySelector("mjx-math"))
      tell(`<${element.tagName.toLowerCase()}> scrolls`, inner, element);
    const room = (element.closest(".math, td, p") ?? article).getBoundingClientRect();
    const [left, right] = element.tagName === "MJX-MATH" ? [room.left, room.right] : [box.left, box.right];
    const out = Math.max(rect.right - right, left - rect.left);
    if (out > SLACK) tell(`<${element.tagName.toLowerCase()}> sticks out`, out, element);
  }
  return found;
})()
