# docker build -t foresight . && docker run --rm --gpus all foresight               the fast tests
# docker run --rm --gpus all -v $PWD/results:/foresight/results -v $PWD/data:/foresight/data foresight make gate1 PY=python
FROM nvidia/cuda:12.1.1-cudnn8-runtime-ubuntu22.04

# The wheel of torch in requirements.txt (2.15.0+cu132) brings CUDA 13.2 and cuDNN 9 and uses nothing of the base's 12.1 and 8: no newer base is needed, but a newer driver on the host,
# 580 or later. The base asks for one of 12.1 only; with this a container on an older one does not start, where torch would go to the CPU.
ENV NVIDIA_REQUIRE_CUDA="cuda>=13.0" PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# Ubuntu 22.04 has a release candidate of Python 3.11
RUN apt-get update && export DEBIAN_FRONTEND=noninteractive \
    && apt-get install -y --no-install-recommends software-properties-common && add-apt-repository -y ppa:deadsnakes/ppa \
    && apt-get install -y --no-install-recommends python3.11 python3.11-venv git make && rm -rf /var/lib/apt/lists/*
RUN python3.11 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /foresight
COPY requirements.txt .
RUN pip install -r requirements.txt
COPY *.py models.yaml Makefile README.md LICENSE ruff.toml ./
COPY tests tests
COPY results/*.yaml results/*.png results/
COPY results/tiny/*.yaml results/tiny/
COPY results/tiny/checkpoints results/tiny/checkpoints

CMD ["make", "test-fast", "PY=python"]
