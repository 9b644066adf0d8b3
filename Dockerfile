# syntax=docker/dockerfile:1

# Everything that is installed is fetched here, and every file is checked against the lock's hashes.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock ./
RUN pip download --no-cache-dir --require-hashes --requirement requirements.lock --dest /wheels \
 && pip install --no-cache-dir --no-index --find-links /wheels hatchling
COPY pyproject.toml LICENSE ./
COPY nodestate ./nodestate
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Here the only source of packages is what the build stage checked; of that, pip takes what running needs, so the
# image has the versions of the lock and none of the tools for development.
FROM python:3.11-slim-bookworm
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-compile --no-index --find-links /wheels 'nodestate[redis]' \
 && useradd --system --uid 10001 --no-create-home nodestate
USER nodestate
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["nodestate"]
CMD ["--help"]
