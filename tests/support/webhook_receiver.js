// A receiver of webhooks, of Node.js's own HTTP stack: HTTP/1.1 and 2 over TLS, or HTTP/1.1 without.
// node webhook_receiver.js PORT LOG [KEY CERT STREAMS [h1]]: what the path's first word says is what it does; each request
// that came whole is a line of LOG before it is answered, so a kill -9 loses none of them.
"use strict";
const fs = require("fs");
const http = require("http");
const http2 = require("http2");
const https = require("https");
const zlib = require("zlib");

const [port, log, key, cert, streams, only] = process.argv.slice(2);
const out = fs.openSync(log, "a");
const tries = new Map();
const held = [];
let connections = 0;

function events(request, body) {
  const text = (request.headers["content-encoding"] === "gzip" ? zlib.gunzipSync(body) : body).toString();
  if (request.headers["content-type"] === "application/x-ndjson") return text.trimEnd().split("\n").map(JSON.parse);
  const found = JSON.parse(text);
  return Array.isArray(found) ? found : [found];
}

const does = {
  ok: (request, response) => response.end("thanks"),
  // /status/503?retry-after=7
  status(request, response, body, path, query) {
    if (query.has("retry-after")) response.setHeader("retry-after", query.get("retry-after"));
    if (query.has("location")) response.setHeader("location", query.get("location"));
    response.statusCode = Number(path[1]);
    response.end("no");
  },
  // Any event with a property `bad` spoils its batch; it is its status.
  poison(request, response, body) {
    const bad = events(request, body).find((each) => each.properties && each.properties.bad);
    response.statusCode = bad ? bad.properties.bad : 200;
    response.end("{}");
  },
  // A batch of several is too large.
  small(request, response, body) {
    response.statusCode = events(request, body).length > 1 ? 413 : 200;
    response.end();
  },
  // A verdict on each event: its property `bad`, else 200. /verdicts/207
  verdicts(request, response, body, path) {
    const results = events(request, body)
      .filter((each) => !(each.properties && each.properties.silent))
      .map((each) => ({ id: each.message_id, status: (each.properties && each.properties.bad) || 200, retry_after: 9, note: "private" }));
    response.statusCode = Number(path[1]);
    response.setHeader("content-type", "application/json; charset=utf-8");
    response.end(JSON.stringify({ results }));
  },
  // /slow/500: milliseconds
  slow: (request, response, body, path) => setTimeout(() => response.end("{}"), Number(path[1])),
  stall() {},
  // /hold/1000: answers nobody until so many wait at once, and then everybody.
  hold(request, response, body, path) {
    held.push(response);
    if (held.length < Number(path[1])) return;
    for (const each of held.splice(0)) each.end();
  },
  // Half of an answer.
  cut(request, response) {
    response.writeHead(200, { "content-length": "100", "content-type": "text/plain" });
    response.write("half");
    setTimeout(() => (response.stream ? response.stream.close(2) : response.socket.destroy()), 20);
  },
  drop: (request) => (request.stream ? request.stream.session : request.socket).destroy(),
  endless(request, response) {
    response.writeHead(200, { "content-type": "application/json" });
    const more = () => response.destroyed || (response.write("x".repeat(16384)) ? setImmediate(more) : response.once("drain", more));
    more();
  },
  // Says goodbye to the connection at every 20th request, and answers what is under way; at the 50th breaks it.
  goodbye(request, response) {
    const session = request.stream ? request.stream.session : request.socket;
    session.seen = (session.seen || 0) + 1;
    if (session.seen === 20 && request.stream) setTimeout(() => session.close(), 5);
    if (session.seen === 20 && !request.stream) response.setHeader("connection", "close");
    setTimeout(() => response.end(), 30);
  },
  // Fails each event at every other try, at the first too.
  flaky(request, response) {
    const id = request.headers["webhook-id"];
    tries.set(id, (tries.get(id) || 0) + 1);
    response.statusCode = tries.get(id) % 2 ? 503 : 200;
    response.end();
  },
};

function take(request, response) {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    if (request.url.startsWith("/quick/")) { // for measurements: milliseconds, and no line in the log
      const answer = () => response.end("{}");
      const ms = Number(request.url.slice(7));
      return ms ? setTimeout(answer, ms) : answer();
    }
    const body = Buffer.concat(parts);
    const url = new URL(request.url, "http://receiver");
    const path = url.pathname.slice(1).split("/");
    const socket = request.stream ? request.stream.session : request.socket;
    socket.number = socket.number || ++connections;
    const tls = request.stream ? request.stream.session.socket : request.socket;
    const line = { at: Date.now(), method: request.method, url: request.url, version: request.httpVersion, host: request.headers.host || request.headers[":authority"],
      headers: Object.fromEntries(Object.entries(request.headers).filter(([name]) => !name.startsWith(":"))), body: body.toString("base64"),
      sni: tls.servername || null, tls: tls.getProtocol ? tls.getProtocol() : null, connection: socket.number };
    fs.writeSync(out, JSON.stringify(line) + "\n");
    does[path[0]](request, response, body, path, url.searchParams);
  });
  request.on("error", () => {});
  response.on("error", () => {});
}

const tls = key && { key: fs.readFileSync(key), cert: fs.readFileSync(cert) };
let server;
if (!tls) server = http.createServer(take);
else if (only === "h1") server = https.createServer(tls, take);
else server = http2.createSecureServer({ ...tls, allowHTTP1: true, settings: { maxConcurrentStreams: Number(streams) } }, take);
server.on("sessionError", () => {});
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 2048 }, () => console.log(server.address().port));
