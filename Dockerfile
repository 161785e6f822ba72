# A run behind HTTP. The run stays outside: it is mounted where the container looks for it.
#
#     docker build -t xmckit-serve .
#     docker run --rm -p 8000:8000 -e XMCKIT_TOKEN=secret \
#         -v "$PWD/Results/XMCKit/LF-DebianTitles-small/fusion:/run-folder:ro" xmckit-serve
#
# More words go to serve.py: `... xmckit-serve --workers 4`. `docker kill -s HUP` loads the run anew.
FROM python:3.11-slim

# torch for the CPU alone; an empty value takes what the usual index has, with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /xmckit
COPY requirements.txt requirements-serve.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements-serve.txt

COPY serve.py ./
COPY engine engine
COPY models models
COPY losses losses
COPY utils utils

# Owns nothing but its own folder, where compiled kernels are kept.
RUN useradd --create-home --uid 10001 xmckit
ENV NUMBA_CACHE_DIR=/home/xmckit/.numba PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER xmckit

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "serve.py", "/run-folder", "--host", "0.0.0.0", "--port", "8000"]
