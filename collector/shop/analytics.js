// Starts one of the two SDKs, as they are, from this server, and gives the shop one way to speak to either.
// ?key=WRITE_KEY and ?sdk=... are taken out of the address at once, so that they are in no event.
"use strict";

const SDKS = {
  segment: { name: "Segment", file: "segment.js", start: () => startSegment({}) },
  "segment-batches": { name: "Segment, in batches", file: "segment.js", start: () => startSegment(IN_BATCHES) },
  rudderstack: { name: "RudderStack", file: "rudderstack.js", start: () => startRudderStack({}) },
  "rudderstack-beacon": { name: "RudderStack, by beacon", file: "rudderstack.js", start: () => startRudderStack(BY_BEACON) },
};
const IN_BATCHES = { strategy: "batching", config: { size: 5, timeout: 1000 } };
const BY_BEACON = { useBeacon: true, beaconQueueOptions: { flushQueueInterval: 1000 } };

function remembered(name, otherwise) {
  const address = new URL(location.href);
  const given = address.searchParams.get(name);
  if (given !== null) {
    localStorage.setItem(`demo-${name}`, given);
    address.searchParams.delete(name);
    history.replaceState(null, "", address);
  }
  return localStorage.getItem(`demo-${name}`) || otherwise;
}

const writeKey = remembered("key", "");
const asked = remembered("sdk", "segment");
const chosen = Object.hasOwn(SDKS, asked) ? asked : "segment";

// What Segment's own snippet does: calls wait in an array until the SDK is there and takes them over.
function startSegment(deliveryStrategy) {
  const waiting = (window.analytics = []);
  for (const method of ["page", "track", "identify", "group", "alias", "screen", "reset"]) {
    waiting[method] = (...rest) => {
      if (window.analytics !== waiting) return window.analytics[method](...rest);
      waiting.push([method, ...rest]);
    };
  }
  Object.assign(waiting, {
    _writeKey: writeKey,
    _cdn: location.origin, // asked for the settings, which say where events go
    _loadOptions: { integrations: { "Segment.io": { deliveryStrategy } } },
  });
  return () => window.analytics;
}

function startRudderStack(options) {
  const sdk = new window.rudderanalytics.RudderAnalytics();
  sdk.load(writeKey, location.origin, { configUrl: location.origin, polyfillIfRequired: false, ...options });
  window.analytics = sdk;
  return () => sdk;
}

// What either SDK calls the visitor who has not signed in.
const anonymousId = (sdk) => (sdk.getAnonymousId ? sdk.getAnonymousId() : sdk.user?.().anonymousId());

function load(file) {
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    Object.assign(script, { src: `/demo/sdk/${file}`, onload: done, onerror: () => failed(new Error(`cannot load ${file}`)) });
    document.head.append(script);
  });
}

// Whether the collector knows the key: with one it does not know an SDK would wait for ever, and say nothing.
async function isKnown(key) {
  if (!key) return false;
  const answer = await fetch(`/v1/projects/${encodeURIComponent(key)}/settings`).catch(() => null);
  return answer === null || answer.ok; // no answer, no verdict
}

// Resolves to a function that returns the SDK to call; to null where the key is missing or unknown.
const analyticsReady = (async () => {
  const { file, start } = SDKS[chosen];
  if (!(await isKnown(writeKey))) return null;
  if (file === "rudderstack.js") {
    await load(file);
    return start();
  }
  const sdk = start();
  await load(file);
  return sdk;
})();
