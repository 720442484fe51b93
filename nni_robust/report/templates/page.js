"use strict";
// Without this script the tables are whole, in the order of their scores; nothing else depends on it.
for (const hidden of document.querySelectorAll(".scripted")) hidden.hidden = false;

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const now = head.getAttribute("aria-sort");
      const falling = now === "none" ? numeric : now === "ascending";
      const value = row => numeric ? row.cells[column].dataset.value : row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === "" || y === "") return (x === "") - (y === "");  // what is missing comes last
        return (numeric ? x - y : x.localeCompare(y)) * (falling ? -1 : 1);
      });
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}

for (const tools of document.querySelectorAll(".tools")) {
  const rows = [...document.getElementById(tools.dataset.for).tBodies[0].rows];
  const find = tools.querySelector(".find"), only = tools.querySelector(".only");
  const texts = rows.map(row => [...row.cells].filter(cell => !cell.dataset.value || cell.cellIndex < 2)
    .map(cell => cell.textContent).join(" ").toLowerCase());
  const update = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !((!only.value || row.classList.contains(only.value)) && words.every(w => texts[i].includes(w)));
      shown += !row.hidden;
    });
    tools.querySelector(".count").textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
  };
  find.addEventListener("input", update);
  only.addEventListener("change", update);
  tools.hidden = false;
  update();
}

// On paper everything is open, whatever was folded or filtered away on the screen.
addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details")) folded.open = true; });
