# The image of containerstacks-billing. Build it from the project's root:
#
#   docker build --tag containerstacks-billing:0.2.0 .
#   docker build --build-arg BASE=mirror.example/python:3.13-slim ...    with another base: a mirror, a digest, a hardened image
#
# The base must be a glibc Linux with Python 3.11 or newer as `python3`. Both stages use the same base, so the bytecode and
# compiled wheels from the first stage run in the second.
ARG BASE=python:3.13-slim

# Repeats the default base for tools that only read FROM lines. No other stage uses this one, so builders don't pull it.
FROM python:3.13-slim AS default-base


FROM ${BASE} AS build

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# Dependencies first: this layer is rebuilt only when the pins change. The base's pip installs into an environment without
# pip, so the final stage gets no second package manager.
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python3 -m venv --without-pip /build \
 && python3 -m venv --without-pip /opt/containerstacks-billing \
 && python3 -m pip --python /build/bin/python install --no-compile --only-binary :all: \
        --require-hashes --requirement requirements/build.txt \
 && python3 -m pip --python /opt/containerstacks-billing/bin/python install --no-compile --only-binary :all: \
        --require-hashes --requirement requirements/runtime.txt

COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY controller controller
RUN python3 -m pip --python /build/bin/python wheel --no-deps --no-build-isolation --wheel-dir /dist . \
 && python3 -m pip --python /opt/containerstacks-billing/bin/python install --no-compile --no-deps --no-index /dist/*.whl

# Two thirds of the installed files belong to the Kubernetes client. Remove its asyncio variant and the packages that only
# the variant needs. Keep its generated modules as bytecode without docstrings, which also saves memory. Everything else
# keeps its source for tracebacks. Python doesn't check the bytecode against its source (unchecked-hash): the root file
# system is read-only, and without timestamps the same sources give the same files. The last commands check that the rest
# works.
WORKDIR /opt/containerstacks-billing
RUN python3 -m pip --python bin/python uninstall --yes --quiet \
        aiohappyeyeballs aiohttp aiohttp-retry aiosignal attrs frozenlist multidict propcache yarl \
 && rm -rf lib/python3.*/site-packages/kubernetes/aio include .gitignore \
 && find bin -type f ! -name containerstacks-billing -delete \
 && bin/python -m compileall -q -b -o 2 --invalidation-mode unchecked-hash lib/python3.*/site-packages/kubernetes/client \
        lib/python3.*/site-packages/pygments/lexers \
 && find lib \( -path '*/kubernetes/client/*.py' -o -path '*/pygments/lexers/*.py' \) -delete \
 && bin/python -m compileall -q --invalidation-mode unchecked-hash lib \
 && bin/containerstacks-billing --help > /dev/null \
 && bin/python -B -c "from kubernetes.client.rest import RESTClientObject; from kubernetes.config import load_incluster_config"


FROM ${BASE}

ARG VERSION=0.2.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="containerstacks-billing" \
      org.opencontainers.image.description="Billing controller for ContainerStacks: PostgreSQL elects the leader, the leader charges every instance-hour exactly once" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="MIT"

COPY --from=build /opt/containerstacks-billing /opt/containerstacks-billing

ENV PATH=/opt/containerstacks-billing/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BILLING_HTTP_ADDRESS=:8080

# Numeric, because runAsNonRoot can't check a user name.
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080
STOPSIGNAL SIGTERM

# Exec form: the controller is PID 1 and receives signals directly.
ENTRYPOINT ["containerstacks-billing"]
CMD ["run"]
