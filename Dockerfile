# PerPEFT on the bundled catalogue, on a CPU, as a user without rights:
#   docker build -t recbole-perpeft . && docker run --rm -v perpeft:/home/perpeft/runs recbole-perpeft
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 perpeft
USER perpeft
WORKDIR /home/perpeft
# Made here, so that volumes on them belong to the user.
RUN mkdir runs cache

# PyTorch without CUDA: its versions with +cpu satisfy the same constraints.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1 \
    PATH=/home/perpeft/.local/bin:$PATH

COPY --chown=perpeft constraints.txt setup.py pyproject.toml README.md LICENSE ./
COPY --chown=perpeft run_recbole.py run_compare.py run_hyper.py ./
COPY --chown=perpeft properties ./properties
COPY --chown=perpeft recbole_perpeft ./recbole_perpeft
COPY --chown=perpeft dataset_atomic ./dataset_atomic
RUN pip install -c constraints.txt -e .

CMD ["python", "run_recbole.py", "--model=PerPEFT"]
