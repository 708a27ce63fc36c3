# One image for every program of mdi-exit: agent, source, gateway and tools. Without PyTorch, without root, and with nothing
# that ties it to a processor: it builds on amd64 and arm64 wherever ONNX Runtime has a wheel.
#
#   docker build -t mdi-exit .                                         for this machine
#   docker buildx build --platform linux/arm64 -t mdi-exit --load .    for a board
#   docker run mdi-exit edge-agent --layers 4-8 --broker mqtt://HOST

ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

# The wheel of this project.
FROM ${PYTHON_IMAGE} AS wheel
RUN python -m venv /opt/pip
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY broker broker
COPY edge_agent edge_agent
COPY mdi_exit mdi_exit
COPY source source
RUN /opt/pip/bin/pip wheel --disable-pip-version-check --no-cache-dir --no-deps --wheel-dir /dist .

# The virtual environment: what the wheel needs, then the wheel.
FROM ${PYTHON_IMAGE} AS install
ARG EXTRAS="web,secure"
RUN python -m venv /opt/mdi-exit
COPY --from=wheel /dist /dist
RUN wheel="$(ls /dist/*.whl)" \
 && /opt/mdi-exit/bin/pip install --disable-pip-version-check --no-cache-dir "${wheel}${EXTRAS:+[$EXTRAS]}" \
 && /opt/mdi-exit/bin/pip uninstall --disable-pip-version-check --yes --quiet pip setuptools

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="mdi-exit" \
      org.opencontainers.image.description="Early-exit, model-distributed inference over MQTT" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=install /opt/mdi-exit /opt/mdi-exit
ENV PATH=/opt/mdi-exit/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    MDI_EXIT_METRICS=127.0.0.1:9464
WORKDIR /tmp
USER 10001:10001
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "mdi_exit.probe"]
CMD ["mdi-exit", "--help"]
