// The capability table: show the rows that contain the text and have every chosen capability.
document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("capability-filter");
  const table = document.querySelector(".md-content table");
  if (!place || !table) return;
  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const search = Object.assign(document.createElement("input"), { type: "search", placeholder: "Name" });
  search.setAttribute("aria-label", "Show optimizers whose name contains");
  const buttons = titles.slice(1).map((title) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: title });
    button.setAttribute("aria-pressed", "false");
    return button;
  });
  const show = () => {
    const wanted = buttons.flatMap((button, i) => (button.getAttribute("aria-pressed") === "true" ? [i + 1] : []));
    for (const row of table.tBodies[0].rows) {
      const named = row.cells[0].textContent.toLowerCase().includes(search.value.toLowerCase());
      row.hidden = !named || wanted.some((i) => row.cells[i].textContent.trim().startsWith("–"));
    }
  };
  search.addEventListener("input", show);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      show();
    });
  }
  place.append(search, ...buttons);
});
