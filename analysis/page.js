"use strict";
(function () {
  function compare(a, b) {
    var x = parseFloat(a), y = parseFloat(b);
    var nx = a !== "" && isFinite(a), ny = b !== "" && isFinite(b);
    if (nx && ny) { return x - y; }
    if (nx !== ny) { return nx ? -1 : 1; }
    return a < b ? -1 : a > b ? 1 : 0;
  }
  function sort(button) {
    var head = button.parentElement, row = head.parentElement, table = head.closest("table"), body = table.tBodies[0];
    var column = Array.prototype.indexOf.call(row.cells, head), up = head.getAttribute("aria-sort") !== "ascending";
    Array.prototype.forEach.call(row.cells, function (cell) { cell.setAttribute("aria-sort", "none"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    var rows = Array.prototype.map.call(body.rows, function (tr, i) {
      var cell = tr.cells[column];
      return { tr: tr, i: i, v: cell ? cell.getAttribute("data-v") || "" : "" };
    });
    rows.sort(function (a, b) {
      if ((a.v === "") !== (b.v === "")) { return a.v === "" ? 1 : -1; }
      return (up ? 1 : -1) * compare(a.v, b.v) || a.i - b.i;
    });
    rows.forEach(function (r) { r.tr.classList.remove("rule"); body.appendChild(r.tr); });
  }
  document.addEventListener("click", function (event) {
    var button = event.target.closest ? event.target.closest("button.sort") : null;
    if (button) { sort(button); }
  });
})();
