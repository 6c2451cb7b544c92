"""What to put into a page, an app or a server so that its SDK sends to this collector."""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from millrace.collector.keys import Kind


class Snippet(NamedTuple):
    """One way to send."""

    title: str
    code: str


def collector_url(text: str) -> str:
    """Give the address of a collector, without a slash at its end.

    Raises:
        ValueError: it does not begin with http:// or https:// and a host.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{text!r} is no address of a collector; write one such as https://events.shop.example")
    return text.rstrip("/")


def snippets(kind: Kind, key: str, url: str) -> Sequence[Snippet]:
    """Give what to write to send with a key to the collector at url, as collector_url gives it."""
    javascript = _in_node(key, url) if kind is Kind.SERVER else _in_pages(key, url)
    return [*javascript, *_in_python(key, url), _with_curl(key, url)]


def _in_pages(key: str, url: str) -> Sequence[Snippet]:
    parts = urlsplit(url)
    return [
        Snippet(
            "JavaScript, npm install @rudderstack/analytics-js",
            f"""\
import {{ RudderAnalytics }} from "@rudderstack/analytics-js/bundled";

const analytics = new RudderAnalytics();
analytics.load("{key}", "{url}", {{ configUrl: "{url}" }});
analytics.track("Order Completed", {{ total: 59.9 }});""",
        ),
        Snippet(
            "JavaScript, npm install @segment/analytics-next",
            f"""\
import {{ AnalyticsBrowser }} from "@segment/analytics-next";

const analytics = AnalyticsBrowser.load(
  {{ writeKey: "{key}", cdnURL: "{url}" }},
  {{ integrations: {{ "Segment.io": {{ apiHost: "{parts.netloc}{parts.path}/v1", protocol: "{parts.scheme}" }} }} }},
);
analytics.track("Order Completed", {{ total: 59.9 }});""",
        ),
    ]


def _in_node(key: str, url: str) -> Sequence[Snippet]:
    return [
        Snippet(
            "JavaScript, npm install @rudderstack/rudder-sdk-node",
            f"""\
import RudderAnalytics from "@rudderstack/rudder-sdk-node";

const analytics = new RudderAnalytics("{key}", {{ dataPlaneUrl: "{url}" }});
analytics.track({{ userId: "ann", event: "Order Completed", properties: {{ total: 59.9 }} }});""",
        ),
        Snippet(
            "JavaScript, npm install @segment/analytics-node",
            f"""\
import {{ Analytics }} from "@segment/analytics-node";

const analytics = new Analytics({{ writeKey: "{key}", host: "{url}" }});
analytics.track({{ userId: "ann", event: "Order Completed", properties: {{ total: 59.9 }} }});""",
        ),
    ]


def _in_python(key: str, url: str) -> Sequence[Snippet]:
    return [
        Snippet(
            "Python, pip install rudder-sdk-python",
            f"""\
import rudderstack.analytics as analytics

analytics.write_key = "{key}"
analytics.dataPlaneUrl = "{url}"
analytics.track("ann", "Order Completed", {{"total": 59.9}})
analytics.flush()""",
        ),
        Snippet(
            "Python, pip install segment-analytics-python",
            f"""\
import segment.analytics as analytics

analytics.write_key = "{key}"
analytics.host = "{url}"
analytics.track("ann", "Order Completed", {{"total": 59.9}})
analytics.flush()""",
        ),
    ]


def _with_curl(key: str, url: str) -> Snippet:
    return Snippet(
        "curl",
        f"""\
curl {url}/v1/track -u {key}: -H 'Content-Type: application/json' \\
  -d '{{"userId": "ann", "event": "Order Completed", "properties": {{"total": 59.9}}}}'""",
    )
