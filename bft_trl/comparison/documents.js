for (const table of JSON.parse(document.getElementById("documents").textContent)) {
  const block = document.querySelector(`[data-task="${CSS.escape(table.task)}"]`);
  const [metric, run, show] = block.querySelectorAll("select");
  const more = block.querySelector("button"), body = block.querySelector("tbody"), head = block.querySelector("tr");
  let sortedBy = null, limit = 20;
  const option = (select, text, value) => select.add(new Option(text, value));
  table.metrics.forEach((name, i) => option(metric, name, i));
  table.runs.slice(1).forEach((name, i) => option(run, name, i + 1));
  const cell = (row, text, kind) => { const made = row.insertCell(); made.textContent = text; if (kind) made.className = kind; return made; };
  const heading = (text, key) => {
    const made = document.createElement("th");
    made.textContent = text; made.className = "text";
    if (key) {
      made.tabIndex = 0;
      made.onclick = () => { sortedBy = sortedBy === key ? null : key; draw(); };
      made.onkeydown = (event) => { if (event.key === "Enter") made.click(); };
    }
    head.append(made);
  };
  heading("document"); heading("reference");
  table.runs.forEach((name, i) => heading(name, i + 1));
  const draw = () => {
    const score = (row, i) => row.scores[metric.value][i];
    const known = (row) => score(row, run.value) !== null && score(row, 0) !== null;
    const gain = (row) => known(row) ? table.signs[metric.value] * (score(row, run.value) - score(row, 0)) : null;
    const wanted = { all: () => true, wins: (row) => gain(row) > 0, losses: (row) => gain(row) < 0, ties: (row) => gain(row) === 0 };  // null is none of the three
    const rows = table.documents.filter(wanted[show.value]);
    const rank = sortedBy === null ? (row) => known(row) ? Math.abs(gain(row)) : -1
      : (row) => score(row, sortedBy - 1) ?? -Infinity;
    rows.sort((a, b) => rank(b) - rank(a));
    body.replaceChildren();
    for (const row of rows.slice(0, limit)) {
      const line = body.insertRow();
      const asked = cell(line, row.id, "text"), note = document.createElement("div");
      note.className = "note"; note.textContent = row.asked; asked.append(note);
      cell(line, row.reference ?? "", "text");
      row.answers.forEach((answer, i) => {
        const made = cell(line, (answer ?? "(no answer)") + " ", "text"), number = document.createElement("b");
        number.textContent = score(row, i) ?? "-"; made.append(number);
      });
    }
    more.hidden = rows.length <= limit;
    more.textContent = `Show all ${rows.length}`;
    block.querySelector("output").textContent = `${rows.length} of ${table.documents.length} documents`;
  };
  more.onclick = () => { limit = Infinity; draw(); };
  for (const select of [metric, run, show]) select.onchange = draw;
  metric.value = Math.max(0, ["similarity", "acc", "rouge1"].map((name) => table.metrics.indexOf(name)).find((i) => i >= 0) ?? 0);
  draw();
}
