# The collector in a container. Build: docker build --tag millrace .   How to run it: docs/operate.md
FROM python:3.11-slim AS build
COPY . /src
RUN python -m venv /opt/millrace && /opt/millrace/bin/pip install --no-cache-dir /src

FROM python:3.11-slim
COPY --from=build /opt/millrace /opt/millrace
RUN useradd --uid 10001 --no-create-home millrace \
    && install --directory --owner=10001 --mode=0700 /var/lib/millrace
USER 10001
# The spool: events that were answered with 200 and are not in Pub/Sub yet. It has to outlive the container.
VOLUME /var/lib/millrace
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["/opt/millrace/bin/python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/health/ready', timeout=4)"]
# No shell in between: SIGTERM has to reach the collector. `docker stop` needs `--time 40`, see --drain_s.
ENTRYPOINT ["/opt/millrace/bin/millrace", "collector", "--host", "0.0.0.0", "--admin_host", "0.0.0.0", \
    "--sources", "/etc/millrace/millrace.yaml", "--spool", "/var/lib/millrace/spool", "--log", "json"]
