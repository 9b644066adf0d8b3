# Nothing here needs BuildKit, which Debian's engine has, but does not use by default.

# Everything that is installed is fetched here, and every file is checked against the lock's hashes.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock ./
RUN pip download --no-cache-dir --require-hashes --requirement requirements.lock --dest /wheels \
 && pip install --no-cache-dir --no-index --find-links /wheels hatchling
COPY pyproject.toml LICENSE ./
COPY nodestate ./nodestate
# The only source of packages is now what was checked; of that, pip takes what running needs. So the environment has
# the versions of the lock and none of the tools for development, not even pip. pip compiles it, too: who runs it can't
# write there, and a health check that compiled everything anew would cost more than what it checks.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/nodestate \
 && pip --python /opt/nodestate/bin/python install --no-cache-dir --no-index --find-links /wheels \
        'nodestate[redis,sql]'

# The same image again, so that the environment finds the very Python that it was made with.
FROM python:3.11-slim-bookworm
# An agent keeps its incarnation, and must find it again: mount a volume here. A new named volume takes over the owner.
RUN useradd --uid 10001 --no-create-home nodestate \
 && install --directory --owner nodestate --group nodestate /var/lib/nodestate
COPY --from=build /opt/nodestate /opt/nodestate
USER nodestate
ENV PATH=/opt/nodestate/bin:$PATH NODESTATE_STATE_DIR=/var/lib/nodestate PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["nodestate"]
CMD ["--help"]
