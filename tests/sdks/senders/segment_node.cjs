// Send with Segment's Node SDK, as its documentation says: {"url", "key", "calls"} from standard input.
"use strict";
const { readFileSync } = require("node:fs");
const { Analytics } = require("@segment/analytics-node");

const { url, key, calls } = JSON.parse(readFileSync(0, "utf8"));
const analytics = new Analytics({ writeKey: key, host: url });
analytics.on("error", (error) => {
  console.error("not sent:", error);
  process.exitCode = 1;
});
for (const { type, ...call } of calls) {
  if (call.timestamp) call.timestamp = new Date(call.timestamp);
  analytics[type](call);
}
analytics.closeAndFlush();
