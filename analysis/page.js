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

  var store = document.getElementById("sample-data");
  if (!store) { return; }
  var data = JSON.parse(store.textContent);
  var pick = document.getElementById("pick-prompt"), left = document.getElementById("pick-left"), right = document.getElementById("pick-right");
  function option(parent, value, label) {
    var node = document.createElement("option");
    node.value = String(value);
    node.textContent = label;
    parent.appendChild(node);
  }
  var groups = {};
  data.prompts.forEach(function (prompt, i) {
    if (!groups[prompt.set]) {
      groups[prompt.set] = document.createElement("optgroup");
      groups[prompt.set].label = prompt.set;
      pick.appendChild(groups[prompt.set]);
    }
    option(groups[prompt.set], i, prompt.id + ": " + prompt.turns[0].replace(/\\s+/g, " ").slice(0, 70));
  });
  data.checkpoints.forEach(function (name, i) { option(left, i, name); option(right, i, name); });
  left.value = "0";
  right.value = String(data.checkpoints.length - 1);
  function add(parent, tag, kind, content) {
    var node = document.createElement(tag);
    if (kind) { node.className = kind; }
    node.textContent = content;
    parent.appendChild(node);
    return node;
  }
  function show(box, checkpoint) {
    var prompt = data.prompts[Number(pick.value)], turns = data.answers[Number(pick.value)][checkpoint];
    box.textContent = "";
    add(box, "h4", "", data.checkpoints[checkpoint]);
    if (!turns) { add(box, "p", "small", "No answer of this checkpoint is stored."); return; }
    turns.forEach(function (answer, t) {
      if (prompt.turns.length > 1) { add(box, "p", "small", "Turn " + (t + 1)); }
      add(box, "pre", "", answer[0] === "" ? "(empty)" : answer[0]);
      add(box, "p", "score", (answer[2] || "not scored") + (answer[1] === "ok" ? "" : " — answer: " + answer[1]));
      if (answer[3]) {
        var more = document.createElement("details");
        more.open = answer[3].length < 400;
        add(more, "summary", "small", "judgment");
        add(more, "pre", "judged", answer[3]);
        box.appendChild(more);
      }
    });
  }
  function draw() {
    var prompt = data.prompts[Number(pick.value)], said = document.getElementById("sample-prompt");
    said.textContent = "";
    prompt.turns.forEach(function (turn, t) {
      if (prompt.turns.length > 1) { add(said, "p", "small", "Turn " + (t + 1)); }
      add(said, "pre", "said", turn);
    });
    show(document.getElementById("sample-left"), Number(left.value));
    show(document.getElementById("sample-right"), Number(right.value));
  }
  function step(by) {
    var count = data.prompts.length;
    pick.value = String((Number(pick.value) + by + count) % count);
    draw();
  }
  [pick, left, right].forEach(function (control) { control.addEventListener("change", draw); });
  document.getElementById("previous").addEventListener("click", function () { step(-1); });
  document.getElementById("next").addEventListener("click", function () { step(1); });
  pick.value = "0";
  draw();
})();
