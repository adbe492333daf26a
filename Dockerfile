# docker build -t autolabel .                             torch with CUDA: docker run --gpus all --shm-size 8g ...
# docker build --build-arg TORCH_INDEX=URL -t autolabel . torch from an index of CPU builds
FROM python:3.12-slim

ARG TORCH_INDEX=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 autolabel \
    && install -d -o autolabel -g autolabel /home/autolabel/app /home/autolabel/work \
    && git config --system safe.directory '*'

# Builders differ in whom a folder belongs to that WORKDIR makes.
WORKDIR /home/autolabel/app
USER autolabel
COPY --chown=autolabel pyproject.toml requirements.lock README.md LICENSE Makefile prefect.yaml ./
COPY --chown=autolabel hmsa_core hmsa_core
COPY --chown=autolabel pipeline pipeline
COPY --chown=autolabel examples/streets examples/streets
RUN make setup TORCH_INDEX="$TORCH_INDEX" && rm -rf /home/autolabel/.cache

ENV PATH=/home/autolabel/app/.venv/bin:$PATH \
    DVC_NO_ANALYTICS=1 DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
WORKDIR /home/autolabel/work
ENTRYPOINT ["autolabel"]
CMD ["--help"]
