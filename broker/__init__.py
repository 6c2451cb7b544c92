"""The embedded Pub/Sub, for a laptop, a single node and tests.

Ordinary google-cloud-pubsub clients reach it by PUBSUB_EMULATOR_HOST. Read it in the order a message travels:
publisher.py -> topic.py -> committer.py -> store.py -> delivery.py -> subscriber.py and streaming.py.

    with Broker("data/broker") as broker:
        os.environ["PUBSUB_EMULATOR_HOST"] = broker.address
"""

from millrace.broker.chaos import Chaos
from millrace.broker.embedded import Broker
from millrace.broker.errors import CannotStart

__all__ = ["Broker", "CannotStart", "Chaos"]
