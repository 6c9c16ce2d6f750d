"use strict";
// What is found becomes text nodes: no text of the data is read as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const query = document.getElementById("query");
  const found = document.getElementById("found");
  const results = document.getElementById("results");
  const MOST = 50;

  const row = (cells, tag) => {
    const line = document.createElement("tr");
    for (const cell of cells) {
      const part = document.createElement(tag);
      part.textContent = cell;
      line.append(part);
    }
    return line;
  };

  const table = (header, rows) => [row(header, "th"), ...rows.map((cells) => row(cells, "td"))];

  const show = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    results.replaceChildren();
    if (!words.length) {
      found.textContent = "";
      return;
    }
    const fits = (...texts) => words.every((word) => texts.some((text) => text.toLowerCase().includes(word)));
    const items = data.items.filter(([token, title]) => fits(token, title));
    const users = data.users.filter(([token]) => fits(token));
    found.textContent = `${items.length} items, ${users.length} users` +
      (items.length + users.length > MOST ? `; the first ${MOST} of each are shown` : "");
    if (items.length) {
      const groups = data.groups.map((name) => `bought by ${name}`);
      results.append(...table(["item", "title", ...groups],
        items.slice(0, MOST).map(([token, title, counts]) => [token, title, ...counts])));
    }
    if (users.length) {
      results.append(...table(["user", "group", "rank of the test item"], users.slice(0, MOST)));
    }
  };
  query.addEventListener("input", show);
})();
