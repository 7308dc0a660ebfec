"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const history = [];          // messages of the conversation, as the API takes them
const rates = [];            // tokens per second of the whole server, one entry per poll
let running = [];            // AbortControllers of answers on their way
let counters = null;         // generation_tokens_total and time of the last poll

function headers() {
  const out = { "Content-Type": "application/json" };
  if ($("key").value) out.Authorization = "Bearer " + $("key").value;
  return out;
}

async function problem(response) {
  let text = response.status + " " + response.statusText;
  try { text = (await response.json()).error.message; } catch { /* no JSON: the status has to do */ }
  return response.status === 401 ? text + " (see Settings)" : text;
}

// -- conversation ---------------------------------------------------------------------------------------------------

function add(parent, kind, name) {
  const box = document.createElement("div");
  box.className = "message " + kind;
  const label = document.createElement("span");
  label.className = "name";
  label.textContent = name;
  const text = document.createElement("span");
  const facts = document.createElement("span");
  facts.className = "facts";
  box.append(label, text, facts);
  parent.append(box);
  return { box, text, facts };
}

function turn(pair) {
  const row = document.createElement("div");
  row.className = pair ? "turn pair" : "turn";
  $("messages").append(row);
  return row;
}

function request(messages, compensators) {
  const body = {
    messages, stream: true, stream_options: { include_usage: true },
    temperature: Number($("temperature").value), top_p: Number($("top_p").value), max_tokens: Number($("max_tokens").value),
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  if (!compensators) body.compensators = false;
  return body;
}

// Calls data(document) for every event of a stream of Server-Sent Events.
async function events(response, data) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const event = rest.slice(0, end);
      if (event.startsWith("data: ") && event !== "data: [DONE]") data(JSON.parse(event.slice(6)));
    }
  }
}

async function answer(messages, view, compensators, chart) {
  const abort = new AbortController();
  running.push(abort);
  const start = performance.now();
  const times = [];
  let usage = null, reason = null;
  const facts = () => {
    const first = times.length ? `first token ${Math.round(times[0] - start)} ms` : "waiting for the first token";
    const seconds = times.length > 1 ? (times[times.length - 1] - times[0]) / 1000 : 0;
    const tokens = usage ? usage.completion_tokens : times.length;
    view.facts.textContent = [first, `${tokens} tokens`, seconds > 0 ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "",
      usage && usage.prompt_tokens_details ? `${usage.prompt_tokens} prompt tokens, ${usage.prompt_tokens_details.cached_tokens} from the cache` : "",
      reason === "length" ? "cut at max tokens" : ""].filter(Boolean).join(" · ");
  };
  facts();
  try {
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request(messages, compensators)), signal: abort.signal });
    if (!response.ok) throw new Error(await problem(response));
    await events(response, (document) => {
      if (document.error) throw new Error(document.error.message);
      if (document.usage) usage = document.usage;
      const choice = document.choices[0];
      if (!choice) return;
      reason = choice.finish_reason;
      const text = choice.delta.content;
      if (!text) return;
      times.push(performance.now());
      const down = $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 60;
      view.text.textContent += text;
      if (down) $("messages").scrollTop = $("messages").scrollHeight;
      facts();
      if (chart) drawItl(times);
    });
  } catch (error) {
    if (error.name !== "AbortError") {
      view.box.classList.add("error");
      view.text.textContent += (view.text.textContent ? "\n" : "") + error.message;
    } else {
      reason = "stopped";
    }
  } finally {
    running = running.filter((other) => other !== abort);
    facts();
    if (reason === "stopped") view.facts.textContent += " · stopped";
  }
  return view.text.textContent;
}

async function send() {
  const prompt = $("prompt").value.trim();
  if (!prompt || running.length) return;
  $("empty").hidden = true;
  $("prompt").value = "";
  history.push({ role: "user", content: prompt });
  add(turn(false), "user", "You").text.textContent = prompt;
  const messages = $("system").value.trim() ? [{ role: "system", content: $("system").value }, ...history] : [...history];
  const pair = $("compare").checked;
  const row = turn(pair);
  $("send").disabled = true;
  $("stop").disabled = false;
  const answers = [answer(messages, add(row, "assistant", pair ? "With compensators" : "Model"), true, true)];
  if (pair) answers.push(answer(messages, add(row, "assistant", "Without compensators"), false, false));
  $("messages").scrollTop = $("messages").scrollHeight;
  const [text] = await Promise.all(answers);
  if (text) history.push({ role: "assistant", content: text });
  else history.pop();
  $("send").disabled = false;
  $("stop").disabled = true;
  $("prompt").focus();
}

// -- charts ---------------------------------------------------------------------------------------------------------

function draw(svg, values, top) {
  svg.replaceChildren();
  if (values.length < 2) return;
  const x = (i) => (300 * i) / (values.length - 1), y = (v) => 86 - 80 * Math.min(v / top, 1);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", values.map((v, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1)).join(""));
  svg.append(path);
}

function drawItl(times) {
  const gaps = times.slice(1).map((t, i) => t - times[i]).slice(-200);
  if (!gaps.length) return;
  draw($("itl"), gaps, Math.max(...gaps, 1) * 1.1);
  const sorted = [...gaps].sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))].toFixed(1);
  $("itl-now").textContent = `${at(0.5)} ms, p99 ${at(0.99)}`;
}

// Sum of a metric's series, by its name and, where given, a label.
function metric(text, name, label = "") {
  let sum = 0, found = false;
  for (const line of text.split("\n")) {
    if (!line.startsWith(name) || (line[name.length] !== "{" && line[name.length] !== " ") || !line.includes(label)) continue;
    sum += Number(line.slice(line.lastIndexOf(" ") + 1));
    found = true;
  }
  return found ? sum : null;
}

async function poll() {
  try {
    const response = await fetch("/metrics", { headers: headers() });
    if (!response.ok) throw new Error(await problem(response));
    const text = await response.text();
    $("running").textContent = metric(text, "vllm:num_requests_running") ?? "–";
    $("waiting").textContent = metric(text, "vllm:num_requests_waiting") ?? "–";
    $("usage").textContent = Math.round(100 * (metric(text, "vllm:kv_cache_usage_perc") ?? 0)) + " %";
    const good = metric(text, "spear:slo_attained_total", "itl") ?? 0, bad = metric(text, "spear:slo_missed_total", "itl") ?? 0;
    $("attained").textContent = good + bad > 0 ? ((100 * good) / (good + bad)).toFixed(1) + " %" : "no objective";
    const tokens = metric(text, "vllm:generation_tokens_total") ?? 0, now = performance.now();
    if (counters) {
      rates.push((1000 * (tokens - counters.tokens)) / (now - counters.now));
      if (rates.length > 60) rates.shift();
      draw($("rate"), rates, Math.max(...rates, 1) * 1.1);
      $("rate-now").textContent = rates[rates.length - 1].toFixed(0);
    }
    counters = { tokens, now };
  } catch { /* the next poll may do better; the model's line says what is wrong */ }
}

async function connect() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await problem(response));
    const model = (await response.json()).data[0];
    $("model").textContent = `${model.id}, ${model.max_model_len.toLocaleString()} tokens`;
    $("model").classList.remove("error");
    document.title = model.id + " · SPEAR";
  } catch (error) {
    $("model").textContent = error.message;
  }
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", () => running.forEach((abort) => abort.abort()));
$("clear").addEventListener("click", () => {
  running.forEach((abort) => abort.abort());
  history.length = 0;
  $("messages").querySelectorAll(".turn").forEach((row) => row.remove());
  $("empty").hidden = false;
  $("prompt").focus();
});
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); connect(); });
connect();
poll();
setInterval(poll, 2000);
