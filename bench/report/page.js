// A click on a heading sorts the rows by its column, a second one the other way round; empty cells stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = [...head.parentNode.children].indexOf(head);
    const body = head.closest("table").tBodies[0];
    const sign = head.dataset.order === "up" ? -1 : 1;
    head.dataset.order = sign > 0 ? "up" : "down";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [a.cells[column], b.cells[column]];
      if (!x.textContent || !y.textContent) return Boolean(y.textContent) - Boolean(x.textContent);
      const numbers = "sort" in x.dataset && "sort" in y.dataset;
      return sign * (numbers ? x.dataset.sort - y.dataset.sort : x.textContent.localeCompare(y.textContent));
    });
    body.append(...rows);
  });
}
