// Send with RudderStack's Node SDK, as its documentation says: {"url", "key", "calls"} from standard input.
"use strict";
const { readFileSync } = require("node:fs");
const RudderAnalytics = require("@rudderstack/rudder-sdk-node");

const { url, key, calls } = JSON.parse(readFileSync(0, "utf8"));
const analytics = new RudderAnalytics(key, { dataPlaneUrl: url });
for (const { type, ...call } of calls) {
  if (call.timestamp) call.timestamp = new Date(call.timestamp);
  analytics[type](call, (error) => {
    if (!error) return;
    console.error("not sent:", error);
    process.exitCode = 1;
  });
}
analytics.flush();
