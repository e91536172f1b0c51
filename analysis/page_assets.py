"""Style and script of the report page: plain CSS and JavaScript, no library, no network. Model text
only ever meets ``textContent``.
"""

CSS = """
:root{color-scheme:light;--ink:#1a1a1a;--soft:#5a5a5a;--line:#d5d5d5;--wash:#f5f6f8;--link:#0b57a4}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:#fff;font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,nav,footer{max-width:72rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.7rem;line-height:1.2;margin:1.5rem 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:2px solid var(--ink)}
h3{font-size:1.05rem;margin:1.6rem 0 .2rem;overflow-wrap:anywhere}
a{color:var(--link)}
.lead{font-size:1.08rem}.question{color:var(--soft);font-style:italic}
.warn{border-left:4px solid #b35c00;background:#fff6ea;padding:.5rem .8rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;padding:.4rem 0;margin:.5rem 0;border-block:1px solid var(--line)}
.caption,.notes,.small{color:var(--soft);font-size:.88rem}.caption{margin:.1rem 0 .5rem}.notes{padding-left:1.2rem;margin:.4rem 0}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:4px;max-width:100%}
.scroll:focus-visible,button:focus-visible,select:focus-visible,a:focus-visible,summary:focus-visible{outline:3px solid #ffb000;outline-offset:1px}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;min-width:100%;background:#fff}
th,td{padding:.28rem .55rem;text-align:right;white-space:nowrap;border-bottom:1px solid #ececec}
th[scope=row],td.text{text-align:left;font-weight:400}th[scope=row]{position:sticky;left:0;background:#fff;border-right:1px solid var(--line)}
td.text{white-space:normal;min-width:8rem;max-width:28rem;overflow-wrap:anywhere}
td.missing{color:#8a3b00;background:#fff6ea;white-space:normal;min-width:7rem;max-width:11rem}
th.text button.sort{text-align:left}
.wide{overflow-x:auto}
thead th{background:var(--wash);padding:0;border-bottom:2px solid var(--line)}thead th:first-child{position:sticky;left:0;z-index:1}
tr.rule>*{border-top:2px solid var(--line)}
button.sort{all:unset;box-sizing:border-box;width:100%;padding:.35rem .55rem;cursor:pointer;font-weight:600;text-align:inherit}
th:first-child button.sort{text-align:left}
button.sort::after{content:" \\2195";color:#aaa}th[aria-sort=ascending] button.sort::after{content:" \\2191";color:var(--ink)}
th[aria-sort=descending] button.sort::after{content:" \\2193";color:var(--ink)}
figure{margin:1rem 0 1.6rem}figure img{max-width:100%;height:auto;display:block;background:#fff}
figcaption{color:var(--soft);font-size:.88rem;margin-top:.3rem}
.controls{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:.6rem;margin:.6rem 0;align-items:end}
.controls label{display:block;font-size:.85rem;color:var(--soft)}
select,.controls button{font:inherit;width:100%;padding:.4rem;border:1px solid #999;
  border-radius:4px;background:#fff;color:var(--ink);min-height:2.6rem}
.step{display:flex;gap:.5rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin-top:.8rem}
.box{border:1px solid var(--line);border-radius:4px;padding:.6rem .8rem;min-width:0}
.box h4{margin:.1rem 0 .4rem;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0;
  font:.85rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;unicode-bidi:plaintext;max-height:28rem;overflow-y:auto}
.said{background:var(--wash);padding:.5rem .7rem;border-radius:4px}
.score{font-weight:600;font-size:.88rem;margin:.3rem 0}.judged{border-left:3px solid var(--line);padding-left:.6rem;color:var(--soft)}
details{margin:.6rem 0}summary{cursor:pointer}
@media (max-width:40rem){body{font-size:15px}.pair{grid-template-columns:1fr}.wide img{max-width:none;width:42rem}
  table{font-size:.8rem}th[scope=row]{max-width:9rem;white-space:normal}}
@media print{nav,#samples{display:none}.scroll{overflow:visible;border:0}h2{break-after:avoid}figure,.exhibit{break-inside:avoid}}
"""

JS = """
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
"""
