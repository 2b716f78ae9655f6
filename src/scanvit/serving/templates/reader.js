"use strict";

const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
let file = null, model = null, turn = 0;

// Everything that comes from a file, a class name or the server goes in as text, never as HTML.
function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function facts(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function problem(message, hint) {
  at("problem").textContent = message === null ? "" : hint ? `${message}\n${hint}` : message;
  at("problem").hidden = message === null;
}

function headers(more = {}) {
  const token = at("token").value;
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw { message: "The server does not answer.", hint: "Is it still running?" };
  }
  const said = await answer.json().catch(() => ({ error: { message: `The server answered with status ${answer.status}.`, hint: "" } }));
  if (answer.status === 401) at("secret").hidden = false;
  if (!answer.ok) throw said.error;
  return said;
}

async function loadModel() {
  try {
    model = await call("/api/model", { headers: headers() });
  } catch (error) {
    problem(error.message, error.hint);
    return;
  }
  problem(null);
  const open = model.audit.map((gate) => `${gate.title} (${gate.verdict}${gate.reason ? `: ${gate.reason}` : ""})`);
  const side = model.contract.image_size_px;
  facts(at("card"), [
    ["Classes", model.class_names.join(", ")],
    ["Sees", `${side} x ${side} pixels, ${model.contract.channels === 1 ? "gray" : "colour"}`],
    ["Calibrated", model.calibrated ? "yes, on val" : "no: probabilities are those of the network alone"],
    ["Audit of its data", open.length ? `open findings: ${open.join("; ")}` : "no open findings"],
    ["Data", model.fingerprint ? model.fingerprint.slice(0, 12) : "unknown"],
    ["Runs on", `${model.engine}, scanvit ${model.scanvit}`],
  ]);
}

function kindOf(chosen) {
  return ["image/png", "image/jpeg"].includes(chosen.type) ? chosen.type : "application/octet-stream";
}

async function read(newFile) {
  if (!file) return;
  const mine = ++turn;
  if (newFile) at("frame").value = 1;
  problem(null);
  if (model && file.size > model.most_bytes) {
    at("found").hidden = true;
    problem(`${file.name} is larger than ${Math.round(model.most_bytes / 1e6)} MB.`, "Start the server with a larger --max-mb.");
    return;
  }
  at("result").setAttribute("aria-busy", "true");
  at("wait").textContent = "Reading ...";
  try {
    const query = new URLSearchParams({ frame: at("frame").value || "1" });
    if (at("reading").value) query.set("first_reading", at("reading").value);
    const said = await call(`/api/predict?${query}`, { method: "POST", body: file, headers: headers({ "Content-Type": kindOf(file) }) });
    if (mine === turn) show(said);
  } catch (error) {
    if (mine !== turn) return;
    at("found").hidden = true;
    at("wait").textContent = "";
    problem(error.message, error.hint);
  } finally {
    if (mine === turn) at("result").setAttribute("aria-busy", "false");
  }
}

function show(said) {
  const frames = said.images.length;
  at("frames").hidden = frames === 1;
  at("frame").max = frames;
  at("of").textContent = `of ${frames}`;
  const drawn = said.pictures, one = said.images[drawn.frame - 1];
  const answer = `${one.prediction}, ${percent(one.probability)}`;
  at("answer").textContent = one.outlier ? "No answer for this image" : answer;
  at("wait").textContent = `Read: ${file.name}${frames > 1 ? `, frame ${drawn.frame}` : ""}`;
  at("found").hidden = false;
  showAgreement(one);
  at("outlier").hidden = !one.outlier;
  at("outlier").textContent = one.outlier ? `It is unlike all that the network was trained on. A network names a class for anything, here ${answer}: do not listen to it.` : "";
  showPictures(drawn, one);
  showRows(one);
  const sure = [];
  if (one.conformal_set) {
    const inside = one.conformal_set.length ? one.conformal_set.join(", ") : "none: nothing known looks like this image";
    sure.push([`Holds the truth in ${Math.round(100 * one.coverage)} %`, inside]);
  }
  if (one.outlier_score !== undefined) sure.push(["Distance from what it knows", `${one.outlier_score.toFixed(2)} (above 1 is an outlier)`]);
  facts(at("facts"), sure);
}

function showAgreement(one) {
  const line = at("agreement");
  line.hidden = !one.agreement;
  line.className = `verdictline ${one.agreement || ""}`;
  line.textContent = one.agreement === "agrees" ? `Agrees with the first reading, ${one.first_reading}.` : `Differs from the first reading, ${one.first_reading}: have a second look.`;
}

function showPictures(drawn, one) {
  at("picture").src = drawn.image;
  at("picture").alt = `The image, ${drawn.width_px} by ${drawn.height_px} pixels`;
  at("heat").src = drawn.attention;
  at("heat").alt = `Where the network reads ${drawn.explains}, in orange`;
  document.querySelector(".stack").style.aspectRatio = `${drawn.width_px} / ${drawn.height_px}`;
  at("explained").textContent = `Orange: what speaks for ${drawn.explains} (${drawn.explained_by}). It does not show that the answer is right.`;
}

function showRows(one) {
  const points = one.operating_points || {};
  const order = Object.keys(one.probabilities).sort((a, b) => one.probabilities[b] - one.probabilities[a]);
  at("rows").replaceChildren(...order.map((name) => {
    const row = element("tr", null, name === one.prediction ? { class: "best" } : {});
    const called = Object.keys(points).filter((rule) => points[rule][name]);
    const bar = element("span", null, { class: "bar", "aria-hidden": "true" }), fill = element("i", null);
    fill.style.width = percent(one.probabilities[name]).replace(" ", "");
    bar.append(fill);
    for (const point of model ? model.thresholds.filter((point) => point.class_name === name) : []) {
      const tick = element("span", null, { class: "tick", title: `${point.rule} ${percent(point.target)}: ${percent(point.threshold)}` });
      tick.style.left = `${100 * Math.min(point.threshold, 1)}%`;
      bar.append(tick);
    }
    const drawn = element("td", null, { class: "text" });
    drawn.append(bar);
    row.append(element("th", name, { scope: "row" }), element("td", percent(one.probabilities[name]), { class: "keep" }), drawn, element("td", called.join(", ") || "–", { class: "text" }));
    return row;
  }));
  at("legend").textContent = Object.keys(points).length ? "Ticks: from these probabilities on a class is called, chosen on val to keep that sensitivity or specificity." : "";
}

function take(list) {
  if (!list || !list.length) return;
  file = list[0];
  at("chosen").textContent = list.length > 1 ? `${file.name} (the first of ${list.length})` : file.name;
  read(true);
}

const drop = at("drop");
at("file").addEventListener("change", (event) => take(event.target.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files); });
document.addEventListener("paste", (event) => take(event.clipboardData.files));
at("form").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["reading", "frame"]) at(id).addEventListener("change", () => read(false));
at("token").addEventListener("change", () => loadModel().then(() => read(false)));
at("show").addEventListener("change", (event) => { at("heat").hidden = !event.target.checked; });
at("strength").addEventListener("input", (event) => { at("heat").style.opacity = event.target.value / 100; });
at("heat").style.opacity = 0.8;
loadModel();
