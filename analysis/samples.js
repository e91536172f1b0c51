// The browser of samples. A side is an arm after an iteration; a pair is one prompt with one seed,
// answered by the left and the right side. Only the rows of the list that can be seen are in the
// page, and answers are compared when they are looked at.
(function () {
  const store = document.getElementById("sample-data");
  if (!store) { return; }
  const data = JSON.parse(store.textContent);
  const part = (id) => document.getElementById(id);
  const list = part("pairs"), room = part("pairs-room"), find = part("find");
  const picks = ["left", "right", "set", "seed", "show"].map((name) => part("pick-" + name));
  const [pickLeft, pickRight, pickSet, pickSeed, pickShow] = picks;
  const ROW = 40; // pixels, as .row in page.css
  const MOST_CELLS = 25e6; // of the table of a comparison: 50 MB
  const TEXT = 0, STATUS = 1, VALUE = 2, SCORED = 3, REWARD = 4, JUDGMENT = 5; // of an answer

  function add(parent, tag, kind, content) {
    const node = document.createElement(tag);
    if (kind) { node.className = kind; }
    if (content !== undefined) { node.textContent = content; }
    parent.appendChild(node);
    return node;
  }

  // -- sides ---------------------------------------------------------------------------------------
  const sides = new Map();
  data.places.forEach(([arm, after, seed, column]) => {
    const name = arm + ", " + after;
    if (!sides.has(name)) { sides.set(name, { name: name, arm: arm, columns: new Map() }); }
    sides.get(name).columns.set(seed, column);
  });
  const seeds = [...new Set(data.places.map((place) => place[2]))].sort((a, b) => a - b);

  function fill(pick, labels) {
    labels.forEach(([value, label]) => { add(pick, "option", "", label).value = String(value); });
  }
  [pickLeft, pickRight].forEach((pick) => {
    const groups = new Map();
    sides.forEach((side) => {
      if (!groups.has(side.arm)) {
        groups.set(side.arm, add(pick, "optgroup"));
        groups.get(side.arm).label = side.arm;
      }
      fill(groups.get(side.arm), [[side.name, side.name]]);
    });
  });
  fill(pickSet, data.sets.map((set, i) => [i, set.title]));
  fill(pickSeed, seeds.map((seed) => [seed, "seed " + seed]));
  // At first the baseline's last checkpoint, and that of the arm whose answers differ most from it.
  const texts = (turns) => (turns || []).map((answer) => answer[TEXT]).join();
  const ends = new Map([...sides.values()].map((side) => [side.arm, side])); // each arm's last side
  const base = ends.get(data.baseline) || [...ends.values()].pop();
  const differing = (side) => [...side.columns].reduce((sum, [seed, column]) => sum + data.answers.filter(
    (row) => base.columns.has(seed) && texts(row[column]) !== texts(row[base.columns.get(seed)])).length, 0);
  const others = [...ends.values()].filter((side) => side !== base).map((side) => [differing(side), side]);
  pickLeft.value = base.name;
  pickRight.value = others.reduce((best, one) => (one[0] > best[0] ? one : best), others[0] || [0, base])[1].name;

  // -- verdicts ------------------------------------------------------------------------------------
  function number(value, digits) {
    const shown = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(shown) !== 0 ? "−" : "") + shown;
  }
  const outcome = (set, answer) => // what must differ for a verdict to have changed
    set.neutral === null ? answer[VALUE].toFixed(set.digits) : Math.sign(answer[VALUE] - set.neutral);
  function verdict(set, answer) {
    if (answer[VALUE] === null) { return answer[SCORED] ? "none (" + answer[SCORED] + ")" : "not scored"; }
    const won = set.neutral === null ? "" : ["lost, ", "tie, ", "won, "][outcome(set, answer) + 1];
    return won + number(answer[VALUE], set.digits);
  }
  const verdicts = (set, turns) => turns ? turns.map((a) => verdict(set, a)).join(" · ") : "no answer";
  function turnChanged(set, a, b) {
    if (!a || !b) { return Boolean(a || b); }
    if (a[VALUE] === null || b[VALUE] === null) { return verdict(set, a) !== verdict(set, b); }
    return outcome(set, a) !== outcome(set, b);
  }
  function changed(pair) {
    const left = pair.left || [], right = pair.right || [];
    return data.prompts[pair.prompt][2].some((_, t) => turnChanged(pair.set, left[t], right[t]));
  }
  function gain(pair) {
    const both = (pair.left || []).map((a, t) => [a, (pair.right || [])[t]]);
    return both.reduce((sum, [a, b]) =>
      a && b && a[VALUE] !== null && b[VALUE] !== null ? sum + b[VALUE] - a[VALUE] : sum, 0);
  }
  const SHOW = {
    all: () => true,
    changed: changed,
    right: (pair) => gain(pair) > 0,
    left: (pair) => gain(pair) < 0,
    text: (pair) => texts(pair.left) !== texts(pair.right),
  };

  // -- the list ------------------------------------------------------------------------------------
  const lower = [];
  function lowered(at) {
    if (lower[at] === undefined) { lower[at] = data.texts[at].toLowerCase(); }
    return lower[at];
  }
  function holds(pair, words) {
    const [, name, turns] = data.prompts[pair.prompt];
    const said = [...(pair.left || []), ...(pair.right || [])].flatMap((a) => [a[TEXT], a[JUDGMENT]]);
    return name.toLowerCase().includes(words) || [...turns, ...said].some((at) => lowered(at).includes(words));
  }
  let all = [], pairs = [], chosen = 0;
  function gather() {
    const left = sides.get(pickLeft.value).columns, right = sides.get(pickRight.value).columns;
    all = [];
    seeds.filter((seed) => pickSeed.value === "" || Number(pickSeed.value) === seed).forEach((seed) => {
      data.prompts.forEach(([set], prompt) => {
        if (pickSet.value !== "" && Number(pickSet.value) !== set) { return; }
        const row = data.answers[prompt];
        const pair = { prompt: prompt, seed: seed, set: data.sets[set] };
        pair.left = left.has(seed) ? row[left.get(seed)] : null;
        pair.right = right.has(seed) ? row[right.get(seed)] : null;
        if (pair.left || pair.right) { all.push(pair); }
      });
    });
    narrow();
  }
  function narrow() {
    const kept = pairs[chosen], words = find.value.trim().toLowerCase(), shows = SHOW[pickShow.value];
    pairs = all.filter((pair) => shows(pair) && (words === "" || holds(pair, words)));
    part("found").textContent = pairs.length + " of " + all.length + " pairs of answers; the verdict changed in " +
      all.filter(changed).length + ".";
    room.style.height = pairs.length * ROW + "px";
    choose(Math.max(0, kept ? pairs.findIndex((p) => p.prompt === kept.prompt && p.seed === kept.seed) : 0));
  }
  function paint() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
    const end = Math.min(pairs.length, first + Math.ceil(list.clientHeight / ROW) + 7);
    room.textContent = "";
    for (let i = first; i < end; i += 1) {
      const pair = pairs[i], [, name, turns] = data.prompts[pair.prompt];
      const row = add(room, "div", changed(pair) ? "row changed" : "row");
      row.id = "pair-" + i;
      row.style.top = i * ROW + "px";
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(i === chosen));
      row.setAttribute("aria-setsize", String(pairs.length));
      row.setAttribute("aria-posinset", String(i + 1));
      add(row, "span", "asked", name + ": " + data.texts[turns[0]].replace(/\s+/g, " ").slice(0, 160));
      add(row, "span", "seed", "seed " + pair.seed);
      add(row, "span", "went", verdicts(pair.set, pair.left) + " → " + verdicts(pair.set, pair.right));
    }
    list.setAttribute("aria-activedescendant", chosen >= first && chosen < end ? "pair-" + chosen : "");
  }
  function choose(at) {
    chosen = Math.min(Math.max(at, 0), Math.max(pairs.length - 1, 0));
    const top = chosen * ROW;
    if (top < list.scrollTop) { list.scrollTop = top; }
    if (top + ROW > list.scrollTop + list.clientHeight) { list.scrollTop = top + ROW - list.clientHeight; }
    paint();
    detail();
  }

  // -- two answers, compared word by word ----------------------------------------------------------
  const WORD = /(\s*)([\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}]|[\p{L}\p{M}\p{N}_]+|\S|$)/gu;
  function words(text) {
    const found = [...text.matchAll(WORD)].map((match) => ({ gap: match[1], word: match[2], own: false }));
    return found.filter((one) => one.gap || one.word);
  }
  // Marks the words of each text that are not in a longest common subsequence of the two.
  function compare(left, right) {
    let start = 0, n = left.length, m = right.length;
    while (start < n && start < m && left[start].word === right[start].word) { start += 1; }
    while (n > start && m > start && left[n - 1].word === right[m - 1].word) { n -= 1; m -= 1; }
    const rows = n - start, columns = m - start, wide = columns + 1;
    const whole = rows * columns > MOST_CELLS; // too long: all between the common ends is marked
    const common = new Uint16Array(whole ? 0 : (rows + 1) * wide);
    const same = (i, j) => left[start + i].word === right[start + j].word;
    for (let i = rows - 1; i >= 0 && !whole; i -= 1) {
      for (let j = columns - 1; j >= 0; j -= 1) {
        const at = i * wide + j;
        common[at] = same(i, j) ? common[at + wide + 1] + 1 : Math.max(common[at + wide], common[at + 1]);
      }
    }
    let i = 0, j = 0;
    while (i < rows || j < columns) {
      if (!whole && i < rows && j < columns && same(i, j)) { i += 1; j += 1; continue; }
      const down = j === columns || (i < rows && (whole || common[(i + 1) * wide + j] >= common[i * wide + j + 1]));
      if (down) { left[start + i].own = true; i += 1; } else { right[start + j].own = true; j += 1; }
    }
  }
  function marked(parent, found) {
    const box = add(parent, "pre", "answer", found.length ? undefined : "(empty)");
    let plain = "", own = "";
    const flush = () => {
      if (plain) { box.appendChild(document.createTextNode(plain)); }
      if (own) { add(box, "mark", "", own); }
      plain = own = "";
    };
    found.forEach((one) => {
      if (one.own && !own) { plain += one.gap; }
      if (!one.own && own) { flush(); }
      if (one.own && plain) { flush(); }
      if (one.own) { own += (own ? one.gap : "") + one.word; } else { plain += one.gap + one.word; }
    });
    flush();
  }

  // -- the chosen pair -----------------------------------------------------------------------------
  function show(box, side, pair, turns, compared) {
    box.textContent = "";
    add(box, "h4", "", side.name + ", seed " + pair.seed);
    if (!turns) { add(box, "p", "small", "No answer of this checkpoint is stored."); return; }
    turns.forEach((answer, t) => {
      if (turns.length > 1) { add(box, "p", "small", "Turn " + (t + 1)); }
      marked(box, compared[t]);
      const differs = turnChanged(pair.set, (pair.left || [])[t], (pair.right || [])[t]);
      const state = answer[STATUS] === "ok" ? "" : " — answer: " + answer[STATUS];
      add(box, "p", differs ? "score changed" : "score", pair.set.words + ": " + verdict(pair.set, answer) + state);
      if (answer[REWARD] !== null) {
        add(box, "p", "small", "reward minus that of the baseline's answer: " + number(answer[REWARD], 3));
      }
      const said = data.texts[answer[JUDGMENT]];
      if (said) {
        const more = add(box, "details");
        more.open = said.length < 400;
        add(more, "summary", "small", "judgment");
        add(more, "pre", "judged", said);
      }
    });
  }
  function detail() {
    const pair = pairs[chosen], asked = part("sample-prompt");
    const boxes = [part("sample-left"), part("sample-right")];
    [asked, ...boxes].forEach((box) => { box.textContent = ""; });
    if (!pair) { add(asked, "p", "small", "Nothing matches."); return; }
    const turns = data.prompts[pair.prompt][2];
    turns.forEach((turn, t) => {
      if (turns.length > 1) { add(asked, "p", "small", "Turn " + (t + 1)); }
      add(asked, "pre", "said", data.texts[turn]);
    });
    const split = (some) => (some || []).map((answer) => words(data.texts[answer[TEXT]]));
    const left = split(pair.left), right = split(pair.right);
    left.forEach((one, t) => { if (right[t]) { compare(one, right[t]); } });
    show(boxes[0], sides.get(pickLeft.value), pair, pair.left, left);
    show(boxes[1], sides.get(pickRight.value), pair, pair.right, right);
  }

  // -- controls ------------------------------------------------------------------------------------
  picks.forEach((pick) => pick.addEventListener("change", pick === pickShow ? narrow : gather));
  find.addEventListener("input", narrow);
  find.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") { event.preventDefault(); list.focus(); }
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      find.focus();
    }
  });
  list.addEventListener("scroll", paint);
  window.addEventListener("resize", paint);
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) { choose(Number(row.id.slice("pair-".length))); }
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const to = {
      ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: chosen + page, PageUp: chosen - page,
      Home: 0, End: pairs.length - 1,
    }[event.key];
    if (to !== undefined) { event.preventDefault(); choose(to); }
  });
  gather();
})();
