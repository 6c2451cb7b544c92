"""Send with Segment's Python SDK, as its documentation says: `{"url", "key", "calls"}` from standard input."""

import json
import sys
from datetime import datetime

from segment import analytics

task = json.load(sys.stdin)
analytics.write_key = task["key"]
analytics.host = task["url"]
failed: list[str] = []
analytics.on_error = lambda error, _: failed.append(f"not sent: {error}")

NAMES = {
    "userId": "user_id",
    "anonymousId": "anonymous_id",
    "previousId": "previous_id",
    "groupId": "group_id",
    "messageId": "message_id",
}
for call in task["calls"]:
    arguments = {NAMES.get(name, name): value for name, value in call.items() if name != "type"}
    if "timestamp" in arguments:
        arguments["timestamp"] = datetime.fromisoformat(arguments["timestamp"])
    getattr(analytics, call["type"])(**arguments)
analytics.shutdown()
sys.exit("\n".join(failed) or None)
