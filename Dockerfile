# This file does not need BuildKit, which Debian's engine has but does not use by default.

# This stage downloads all packages and checks each file against the hashes of the lock.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock ./
RUN pip download --no-cache-dir --require-hashes --requirement requirements.lock --dest /wheels \
 && pip install --no-cache-dir --no-index --find-links /wheels hatchling
COPY pyproject.toml LICENSE README.md ./
COPY nodestate ./nodestate
# From here on pip uses only the checked files, and installs only the packages that nodestate needs to run. So the
# environment has the versions of the lock, and no development tools, not even pip. pip compiles the modules as well:
# the user of the image can't write there, and a health check would otherwise compile everything each time.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/nodestate \
 && pip --python /opt/nodestate/bin/python install --no-cache-dir --no-index --find-links /wheels \
        'nodestate[ed25519,redis,serve,sql]'

# The same base image, because the environment refers to its Python.
FROM python:3.11-slim-bookworm
# `make sbom` writes the list of the packages in this image.
LABEL org.opencontainers.image.title="nodestate" \
      org.opencontainers.image.description="The state of every compute node, in memcached and a message queue" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"
# An agent keeps its incarnation here and must find it after a restart: mount a volume. A new named volume takes over
# the owner of the folder.
RUN useradd --uid 10001 --no-create-home nodestate \
 && install --directory --owner nodestate --group nodestate /var/lib/nodestate
COPY --from=build /opt/nodestate /opt/nodestate
USER nodestate
ENV PATH=/opt/nodestate/bin:$PATH NODESTATE_STATE_DIR=/var/lib/nodestate PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The health of a container is one short request, and no command of nodestate. A consumer or an agent answers it with
# `--metrics-listen 9464`; `nodestate serve` needs HEALTH_URL=http://127.0.0.1:8790/readyz. A container with another
# command needs `--no-healthcheck`.
ENV HEALTH_URL=http://127.0.0.1:9464/readyz
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(os.environ['HEALTH_URL'], timeout=4)"]
ENTRYPOINT ["nodestate"]
CMD ["--help"]
